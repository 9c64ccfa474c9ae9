"""What the backends over the static graph share: checks of options, sizes, and the Runner around an executor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from ernie_accel import env, system
from ernie_accel.architecture.counts import parameter_counts
from ernie_accel.backends.base import Availability, Footprint, LoadOptions, RunnerInfo
from ernie_accel.backends.checks import check_context
from ernie_accel.backends.registry import check_precision
from ernie_accel.backends.static_graph.executor import Executor
from ernie_accel.backends.static_graph.runner import StaticGraphRunner
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.exported import EXPORT_NAME, ExportedCheckpoint
from ernie_accel.errors import ArgumentError, CapacityError, CheckpointError, UnsupportedError
from ernie_accel.export.signature import Signature

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig
    from ernie_accel.types import Precision

__all__ = [
    "DEFAULT_STEP_TOKENS",
    "StaticGraphBackend",
    "check_graph_options",
    "check_seconds",
    "check_step_tokens",
    "choose_threads",
]

DEFAULT_SEQUENCES = 32
DEFAULT_STEP_TOKENS = 512
KV_PRECISIONS = {"float32": "fp32", "float16": "fp16"}
"""Our names of the dtypes that keys and values have."""
_TOKEN_COPIES = 2
"""Of the cache, since padding may double it."""

Options = TypeVar("Options")


class StaticGraphBackend(ABC, Generic[Options]):
    """A Backend that needs no more than an executor.

    A subclass sets ``name``, ``precisions`` (``"auto"`` means the first) and ``options_type``, whose instances have
    ``max_step_tokens`` and can be made without arguments.
    """

    name: str
    precisions: tuple[str, ...]
    options_type: type[Any]
    splits = False
    runtime_bytes = 64 << 20
    """Of library, threads and graph."""
    loading_share: ClassVar[Mapping[str, float]] = {}
    """``Footprint.loading`` by precision."""
    kept_again: ClassVar[Mapping[str, int]] = {}
    """Bytes of each parameter that are kept in another form beside its weight, by precision."""
    head_again = False
    """Whether a tied head in fp32 is kept in a layout of its own beside the table that tokens are looked up in."""

    @abstractmethod
    def available(self) -> Availability:
        """See ``Backend``."""

    @abstractmethod
    def _executor(
        self, checkpoint: Checkpoint, signature: Signature, options: LoadOptions, own: Options
    ) -> Executor:
        """Load the graph. ``options`` are checked but for device and threads; ``own`` are the backend's."""

    def _cache_dtype(self, precision: str) -> str:
        """NumPy dtype of keys and values."""
        return "float32"

    def estimate(self, config: ModelConfig, options: LoadOptions) -> Footprint:
        """Bytes beside the weights: padding may double the cache; scores and logits of the widest step."""
        own = self._own(options)
        signature = self._signature(config, options)
        tokens, context = own.max_step_tokens, check_context(options, config.max_position_embeddings)
        scores = config.num_attention_heads * 3 * context
        widest = max(config.vocab_size, 4 * config.intermediate_size, scores)
        again = self.head_again and config.tie_word_embeddings and signature.precision == "fp32"
        kept = self.kept_again.get(signature.precision, 0) * sum(parameter_counts(config).values())
        head = 4 * config.vocab_size * config.hidden_size if again else 0
        return Footprint(
            kv_per_token=_TOKEN_COPIES * signature.token_bytes,
            scratch=4 * tokens * widest + head + kept,
            runtime=self.runtime_bytes,
            loading=self.loading_share.get(signature.precision, 0.0),
            step_tokens=tokens,
            kv_precision=KV_PRECISIONS[signature.cache_dtype],
        )

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> StaticGraphRunner:
        """Load the graph and return the Runner.

        Raises:
            UnsupportedError: A setting that this backend lacks.
            CapacityError: ``memory_limit`` holds no token.
            BackendError: The engine refuses the graph.
        """
        own = self._own(options)
        config = checkpoint.config
        if isinstance(checkpoint, ExportedCheckpoint):
            options = _settle_precision(checkpoint, options)
        self._check(options)
        signature = self._signature(config, options)
        if isinstance(checkpoint, ExportedCheckpoint):
            _check_signature(checkpoint, signature)
        info = self._info(config, signature, options, own.max_step_tokens)
        tokens = self._kv_tokens(config, options, info)
        executor = self._executor(checkpoint, signature, options, own)
        details = {"engine": executor.info.engine, **executor.info.details}
        return StaticGraphRunner(executor, signature, replace(info, details=details), tokens)

    def _own(self, options: LoadOptions) -> Any:
        given = options.backend_options
        if given is None:
            given = self.options_type()
        if not isinstance(given, self.options_type):
            raise ArgumentError(
                f"backend_options={given!r}: backend {self.name!r} takes {self.options_type.__name__}"
            )
        return replace(given, max_step_tokens=options.step_tokens) if options.step_tokens else given

    def _check(self, options: LoadOptions) -> None:
        check_precision(self, options)
        if options.tensor_parallel not in (1, "auto") and not self.splits:
            raise UnsupportedError(
                f"tensor_parallel={options.tensor_parallel}: backend {self.name!r} cannot be split; use 1"
            )
        wanted = KV_PRECISIONS[self._cache_dtype(self._precision(options))]
        if options.kv_precision not in ("auto", wanted):
            raise UnsupportedError(
                f"kv_precision={options.kv_precision!r}: backend {self.name!r} keeps keys and values in {wanted}"
            )
        if options.max_batch is not None and options.max_batch < 1:
            raise ArgumentError(f"max_batch={options.max_batch}: must be at least 1")

    def _precision(self, options: LoadOptions) -> str:
        return self.precisions[0] if options.precision == "auto" else options.precision

    def _signature(self, config: ModelConfig, options: LoadOptions) -> Signature:
        precision = self._precision(options)
        return Signature.of(config, precision, self._cache_dtype(precision))

    def _info(
        self, config: ModelConfig, signature: Signature, options: LoadOptions, max_step_tokens: int
    ) -> RunnerInfo:
        return RunnerInfo(
            backend=self.name,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_context=check_context(options, config.max_position_embeddings),
            precision=signature.precision,
            kv_precision=KV_PRECISIONS[signature.cache_dtype],
            page_size=1,
            max_step_tokens=max_step_tokens,
            max_sequences=options.max_batch or DEFAULT_SEQUENCES,
            capabilities=frozenset({"hidden", "park"}),
        )

    def _kv_tokens(self, config: ModelConfig, options: LoadOptions, info: RunnerInfo) -> int:
        most = info.max_sequences * info.max_context
        if options.memory_limit is None:
            return most
        each = (
            _TOKEN_COPIES * self._signature(config, options).token_bytes
        )  # of all ranks: they share one cache
        if options.memory_limit < each:
            raise CapacityError(
                f"memory_limit={options.memory_limit}: one token of KV cache takes {each} bytes; raise the limit"
            )
        return min(most, options.memory_limit // each)


def _settle_precision(checkpoint: ExportedCheckpoint, options: LoadOptions) -> LoadOptions:
    """A graph has one precision."""
    if options.precision not in ("auto", checkpoint.precision):
        raise UnsupportedError(
            f"precision={options.precision!r}: {checkpoint.directory} holds a graph in {checkpoint.precision}; leave "
            "precision='auto', or export the checkpoint again"
        )
    return replace(options, precision=cast("Precision", checkpoint.precision))


def _check_signature(checkpoint: ExportedCheckpoint, signature: Signature) -> None:
    """A graph that was made for another configuration, or by another release, would compute nonsense."""
    source = f"{checkpoint.directory}/{EXPORT_NAME}"
    found = Signature.from_dict(checkpoint.signature, source)
    if found != signature:
        raise CheckpointError(f"{source}: {found} does not fit config.json and this backend: {signature}")


def choose_threads(threads: int | None) -> int:
    """Return how many threads to use: what was asked for, or what the environment says, or what the machine allows."""
    threads = threads or env.threads() or system.available_threads()
    if not 1 <= threads <= 1024:
        raise ArgumentError(f"threads={threads}: must be from 1 to 1024")
    return threads


def check_graph_options(checkpoint: ExportedCheckpoint, own: Any, names: Sequence[str]) -> None:
    """Raise ArgumentError where options that say how a graph is written were given with one that is written."""
    plain = type(own)()
    given = [name for name in names if getattr(own, name) != getattr(plain, name)]
    if given:
        raise ArgumentError(
            f"{', '.join(given)}: {checkpoint.directory} holds a graph that was written without that; leave it out, or "
            "load the checkpoint that it was made of"
        )


def check_step_tokens(tokens: object) -> None:
    """Raise ArgumentError unless ``max_step_tokens`` is a sensible number."""
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= 65536:
        raise ArgumentError(f"max_step_tokens={tokens!r}: must be a whole number from 1 to 65536")


def check_seconds(name: str, value: object) -> None:
    """Raise ArgumentError unless a limit of time is one."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ArgumentError(f"{name}={value!r}: must be a number of seconds above 0")
