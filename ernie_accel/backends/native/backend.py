"""Opens checkpoints on the native engine: settings, memory, and the choice of instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ernie_accel import env, system
from ernie_accel.backends.base import Availability, Footprint, LoadOptions, RunnerInfo
from ernie_accel.backends.checks import CPU_ONLY, check_context
from ernie_accel.backends.native.footprint import table_bytes, weight_bytes
from ernie_accel.backends.native.isa import choose_isa
from ernie_accel.backends.native.translate import translate
from ernie_accel.backends.registry import check_precision, settle_precision
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.packed import PackedCheckpoint
from ernie_accel.checkpoint.packed.layout import QUANTISED
from ernie_accel.errors import ArgumentError, CapacityError, UnsupportedError

if TYPE_CHECKING:
    from ernie_accel import _native
    from ernie_accel.architecture.config import ModelConfig
    from ernie_accel.backends.native.packing import NativePacker
    from ernie_accel.backends.native.runner import NativeRunner
    from ernie_accel.checkpoint.quantised import ActivationGroups

__all__ = ["NativeBackend", "NativeOptions"]

PAGE_TOKENS = 16
DEFAULT_SEQUENCES = 32
KV_SHARE = 0.8
"""Of the memory that the machine and the cgroup leave, how much the KV cache may take when no limit is given."""

KV_PRECISIONS = ("fp32", "bf16", "int8")

_CAPABILITIES = frozenset({"select", "hidden", "invariant", "profile", "park", "overlap"})


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    """Settings of the native backend that no other has.

    Attributes:
        isa: Instruction-set level to use, one of ``ernie_accel.env.ISA_LEVELS``; None takes ``ERNIE_ACCEL_ISA``,
            else the best.
        max_step_tokens: Largest number of tokens of one step; working memory grows with it.
        resident: Read a quantized directory into memory of this process instead of mapping it: loading takes about a
            second for a gigabyte and decoding is up to a tenth faster, but processes no longer share the weights.
        whole_head: Read the whole vocabulary head for every token. A quantised head has two planes; greedy and top-k
            draws read the upper one and, of the lower, only the rows whose bounds reach the best. The bounds allow for
            seven standard deviations of what the lower plane can add, and are checked against every row that is read.
    """

    isa: str | None = None
    max_step_tokens: int = 512
    resident: bool = False
    whole_head: bool = False

    def __post_init__(self) -> None:
        tokens = self.max_step_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= 65536:
            raise ArgumentError(f"max_step_tokens={tokens!r}: must be a whole number from 1 to 65536")
        if self.isa is not None and self.isa not in env.ISA_LEVELS:
            raise ArgumentError(f"isa={self.isa!r}: must be one of {', '.join(env.ISA_LEVELS)}")
        for name in ("resident", "whole_head"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: must be True or False")


class NativeBackend:
    """int8, int4, bf16 and fp32 on the processor, through the extension module ``ernie_accel._native``."""

    name = "native"
    precisions: tuple[str, ...] = ("int8", "int4", "bf16", "fp32")
    options_type = NativeOptions

    def available(self) -> Availability:
        """Say whether the extension module loads here."""
        try:
            choice = choose_isa()
        except ImportError as error:
            return Availability(
                False,
                f"The extension module does not load: {error}.",
                "In a clone install with 'pip install --editable .', or else its source folder hides the package; "
                "elsewhere reinstall ernie-accel. Both need a C++20 compiler.",
            )
        except (ArgumentError, UnsupportedError) as error:
            return Availability(False, f"{error}.")
        return Availability(True, f"Runs with {choice.isa} instructions.")

    def estimate(self, config: ModelConfig, options: LoadOptions) -> Footprint:
        """Packed weights, KV cache of one token, working memory of the largest step, code and threads.

        Raises UnsupportedError for what ``open`` would refuse.
        """
        self._check(options)
        sizes = _sizes(config, options, _native_options(options))
        return Footprint(
            kv_per_token=sizes.page_bytes // PAGE_TOKENS,
            scratch=translate(lambda: sizes.scratch_bytes(_threads(options))),
            runtime=16 << 20,
            page_tokens=PAGE_TOKENS,
            weights=weight_bytes(config, _precision(options), sizes),
            step_tokens=sizes.max_step_tokens,
            kv_precision=_kv_precision(options),
            looked_up=table_bytes(config, _precision(options)),
        )

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> NativeRunner:
        """Pack the weights (quantising them for int8 and int4) and return the Runner.

        Raises:
            UnsupportedError: A setting that this backend or processor lacks.
            CapacityError: Weights and one page of KV cache do not fit the memory.
            BackendError: The system does not start that many threads.
        """
        from ernie_accel import _native
        from ernie_accel.backends.native.loader import load_weights
        from ernie_accel.backends.native.runner import NativeRunner

        options = settle_precision(checkpoint, options)
        self._check(options)
        native_options = _native_options(options)
        choice = choose_isa(native_options.isa)
        config = checkpoint.config
        sizes = _sizes(config, options, native_options)
        _set_groups(sizes, checkpoint)
        threads = _threads(options)
        sizes.max_pages = _pages(config, options, sizes, threads)
        model = translate(lambda: _native.Model(sizes, choice.isa, threads))
        if native_options.resident and isinstance(checkpoint, PackedCheckpoint):
            checkpoint.make_resident()
        load_weights(model, checkpoint, options.progress, multi_token=options.multi_token)
        recipe = getattr(checkpoint, "recipe", None) or _recipe(_precision(options), sizes)
        return NativeRunner(
            model, _info(config, options, sizes, choice.isa, threads, model.weight_bytes, recipe)
        )

    def packer(self, checkpoint: Checkpoint, options: LoadOptions) -> NativePacker:
        """Pack for a file; see ``ernie_accel.backends.base.PackingBackend``."""
        from ernie_accel import _native
        from ernie_accel.backends.native.packing import NativePacker

        options = settle_precision(checkpoint, options)
        self._check(options)
        sizes = _sizes(checkpoint.config, options, _native_options(options))
        _set_groups(sizes, checkpoint)
        sizes.max_pages = 1
        model = translate(lambda: _native.Model(sizes, choose_isa().isa, _threads(options)))
        return NativePacker(model, checkpoint)

    def _check(self, options: LoadOptions) -> None:
        check_precision(self, options)
        if options.device not in (None, "cpu"):
            raise UnsupportedError(f"device={options.device!r}: backend 'native' {CPU_ONLY}")
        if options.tensor_parallel not in (1, "auto"):
            raise UnsupportedError(
                f"tensor_parallel={options.tensor_parallel}: backend 'native' is one process; use 1"
            )
        if options.kv_precision not in ("auto", *KV_PRECISIONS):
            raise UnsupportedError(
                f"kv_precision={options.kv_precision!r}: backend 'native' has {', '.join(KV_PRECISIONS)}"
            )


def _native_options(options: LoadOptions) -> NativeOptions:
    given = options.backend_options
    if given is None:
        return NativeOptions()
    if not isinstance(given, NativeOptions):
        raise ArgumentError(f"backend_options={given!r}: backend 'native' takes NativeOptions")
    return given


def _set_groups(sizes: _native.Config, checkpoint: Checkpoint) -> None:
    groups: ActivationGroups | None = getattr(checkpoint, "activations", None)
    if groups is not None:
        sizes.group, sizes.down_group, sizes.head_group = groups.body, groups.down, groups.head


def _precision(options: LoadOptions) -> str:
    return "int8" if options.precision == "auto" else options.precision


def _kv_precision(options: LoadOptions) -> str:
    if options.kv_precision != "auto":
        return options.kv_precision
    return "int8" if _precision(options) in QUANTISED else _precision(options)


def _threads(options: LoadOptions) -> int:
    threads = options.threads
    if threads is None:
        threads = env.threads() or system.available_threads()
    if not 1 <= threads <= 1024:
        raise ArgumentError(f"threads={threads}: must be from 1 to 1024")
    return threads


def _sizes(config: ModelConfig, options: LoadOptions, native_options: NativeOptions) -> _native.Config:
    from ernie_accel import _native

    sizes = _native.Config()
    sizes.vocab, sizes.hidden, sizes.layers = config.vocab_size, config.hidden_size, config.num_hidden_layers
    sizes.heads, sizes.kv_heads, sizes.head_dim = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    sizes.intermediate, sizes.tied = config.intermediate_size, config.tie_word_embeddings
    sizes.multi_token = options.multi_token
    sizes.eps, sizes.theta = config.rms_norm_eps, config.rope_theta
    sizes.moe_layers = [config.is_moe_layer(i) for i in range(config.num_hidden_layers)]
    if config.moe_num_experts:
        sizes.experts, sizes.experts_per_token = config.moe_num_experts, config.moe_k
        sizes.expert_intermediate = config.moe_intermediate_size
        sizes.shared_experts, sizes.norm_min = config.moe_num_shared_experts, config.moe_norm_min
    sizes.set_precision(_precision(options), _kv_precision(options))
    sizes.max_context = check_context(options, config.max_position_embeddings)
    sizes.max_step_tokens = options.step_tokens or native_options.max_step_tokens
    sizes.whole_head = native_options.whole_head
    sizes.max_sequences = _max_sequences(options)
    return sizes


def _max_sequences(options: LoadOptions) -> int:
    if options.max_batch is None:
        return DEFAULT_SEQUENCES
    if not 1 <= options.max_batch <= 1 << 20:
        raise ArgumentError(f"max_batch={options.max_batch}: must be from 1 to {1 << 20}")
    return options.max_batch


def _pages(config: ModelConfig, options: LoadOptions, sizes: _native.Config, threads: int) -> int:
    """Pages of KV cache that may be taken: what the memory allows, and never more than all sequences can fill."""
    weights = sum(weight_bytes(config, _precision(options), sizes).values())
    scratch = translate(lambda: sizes.scratch_bytes(threads))
    free = system.available_memory() - weights - scratch
    budget = int(free * KV_SHARE) if options.memory_limit is None else options.memory_limit
    if budget < sizes.page_bytes or free < sizes.page_bytes:
        limit = "" if options.memory_limit is None else f" and memory_limit is {options.memory_limit:,}"
        raise CapacityError(
            f"weights take about {weights:,} bytes, working memory {scratch:,}, one page of KV cache "
            f"{sizes.page_bytes:,}; {system.available_memory():,} bytes are available{limit}; choose a smaller "
            "precision or free memory"
        )
    full = sizes.max_sequences * (-(-sizes.max_context // PAGE_TOKENS) + 1)
    return int(min(budget // sizes.page_bytes, full, (1 << 31) - 1))


def _recipe(precision: str, sizes: _native.Config) -> str:
    groups = f"{sizes.group} ({sizes.down_group} in down_proj, {sizes.head_group} in the head)"
    weights = f"weights by row and group of {groups}, activations int8 by token and the same groups"
    if precision == "int4":
        weights = (
            "weights by row and group of 128 with a factor for every 16 columns, head in 6 bits, activations int8 by "
            f"token and group of {groups}"
        )
    return f"{precision} without calibration: {weights}, nearest rounding; router in fp32"


def _info(
    config: ModelConfig,
    options: LoadOptions,
    sizes: _native.Config,
    isa: str,
    threads: int,
    weight_bytes: int,
    recipe: str,
) -> RunnerInfo:
    details: dict[str, Any] = {"isa": isa, "threads": threads, "weight_bytes": weight_bytes}
    if _precision(options) in QUANTISED:
        details["recipe"] = recipe
    return RunnerInfo(
        backend="native",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_context=sizes.max_context,
        precision=_precision(options),
        kv_precision=_kv_precision(options),
        page_size=PAGE_TOKENS,
        max_step_tokens=sizes.max_step_tokens,
        max_sequences=sizes.max_sequences,
        threads=threads,
        capabilities=frozenset(_CAPABILITIES | ({"draft"} if options.multi_token else set())),
        details=details,
    )
