"""From what ``Model.load`` was given to the arguments of FastDeploy's engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy.names import ENGINE_ARGUMENTS, QUANTIZATION
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.errors import ArgumentError, UnsupportedError

__all__ = [
    "DEFAULT_SEQUENCES",
    "Device",
    "check_remote",
    "devices",
    "engine_arguments",
    "here",
    "kv_bytes_per_token",
    "parallel",
]

MAX_SEQUENCES = 256
DEFAULT_SEQUENCES = 32
DRAFT_TOKENS = 5
RAW = "raw_logprobs"


@dataclass(frozen=True)
class Device:
    """GPUs by number; ``indices`` None means those that are visible."""

    indices: tuple[int, ...] | None

    @property
    def visible(self) -> str | None:
        """Value of CUDA_VISIBLE_DEVICES, None to leave it alone."""
        return None if self.indices is None else ",".join(map(str, self.indices))


def devices(device: str | None) -> Device:
    """Read ``device``: None, ``"gpu"``, ``"gpu:0"``, ``"gpu:0,1"``; ``cuda`` is another word for ``gpu``.

    Raises:
        UnsupportedError: It is no GPU.
    """
    kind, _, numbers = (device or "gpu").partition(":")
    if kind not in ("gpu", "cuda"):
        raise UnsupportedError(
            f"device={device!r}: FastDeploy 2.x runs on GPUs alone; backend 'native' runs on a CPU"
        )
    if not numbers:
        return Device(None)
    parts = numbers.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ArgumentError(f"device={device!r}: must be such as 'gpu', 'gpu:0' or 'gpu:0,1'")
    return Device(tuple(map(int, parts)))


def parallel(options: LoadOptions, own: FastDeployOptions, config: ModelConfig | None) -> int:
    """Return the number of GPUs that share a copy of the model; ``"auto"`` is as many as ``device`` names.

    Raises:
        ArgumentError: The attention heads, or the experts' arrangement, do not allow it.
    """
    named = devices(options.device).indices
    wanted = options.tensor_parallel
    degree = (len(named) // own.data_parallel or 1) if wanted == "auto" and named else wanted
    degree = 1 if degree == "auto" else degree
    if config is not None and config.num_attention_heads % degree:
        raise ArgumentError(
            f"tensor_parallel={degree}: must divide the {config.num_attention_heads} attention heads"
        )
    if own.expert_parallel and degree > 1:
        raise ArgumentError(
            f"tensor_parallel={degree}: experts are spread over copies of the model (data_parallel) of one GPU each"
        )
    if own.expert_parallel and config is not None and not config.is_moe:
        raise ArgumentError("expert_parallel=True: this model has no experts")
    needed = here(degree, own)
    if named is not None and len(named) < needed:
        raise ArgumentError(
            f"device={options.device!r}: names {len(named)} GPUs, and tensor_parallel={degree} times data_parallel="
            f"{own.data_parallel} needs {needed} on this machine"
        )
    return degree


def here(degree: int, own: FastDeployOptions) -> int:
    """Return how many GPUs of this machine are needed; ``ips`` names those that a copy of the model lies on.

    Raises:
        ArgumentError: They cannot have equally many.
    """
    ips = own.engine_arguments.get("ips") or ()
    machines = len(ips.split(",") if isinstance(ips, str) else ips) or 1
    if degree % machines:
        raise ArgumentError(
            f"tensor_parallel={degree}: cannot be divided evenly among the {machines} machines that ips names"
        )
    return degree * own.data_parallel // machines


def kv_bytes_per_token(config: ModelConfig, degree: int) -> int:
    """Bytes of KV cache for one token on one GPU: keys and values in two bytes each; heads are never cut."""
    heads = max(1, config.num_key_value_heads // degree)
    return 2 * 2 * config.head_dim * heads * config.num_hidden_layers


def engine_arguments(
    directory: Path, config: ModelConfig, options: LoadOptions, own: FastDeployOptions
) -> dict[str, Any]:
    """Return the keyword arguments of ``LLM``.

    Raises:
        ArgumentError, UnsupportedError: A setting can never work, or cannot be said.
    """
    _refuse_foreign(options)
    degree = parallel(options, own, config)
    sequences = DEFAULT_SEQUENCES if options.max_batch is None else options.max_batch
    if sequences > MAX_SEQUENCES:
        raise ArgumentError(f"max_batch={sequences}: FastDeploy takes at most {MAX_SEQUENCES}")
    arguments: dict[str, Any] = {
        "model": str(directory),
        "max_model_len": _context(config, options),
        "max_num_seqs": sequences,
        "tensor_parallel_size": degree,
        "data_parallel_size": own.data_parallel,
        "enable_expert_parallel": own.expert_parallel,
        "gpu_memory_utilization": own.memory_utilization,
        "block_size": own.block_size,
    }
    arguments |= (
        _quantization(options, own)
        | _engine_settings(options, own, sequences)
        | _memory(config, options, own, degree)
    )
    if own.loader != "auto":
        arguments["load_choices"] = own.loader
    if own.guided_decoding:
        arguments["guided_decoding_backend"] = "xgrammar"
    if own.logprobs:
        arguments["enable_logprob"] = True
        _check_logprobs_mode(own)
    taken = sorted(set(own.engine_arguments) & set(ENGINE_ARGUMENTS.values()))
    if taken:
        ours = {theirs: name for name, theirs in ENGINE_ARGUMENTS.items()}
        raise ArgumentError(
            f"engine_arguments: {', '.join(f'{name} is {ours[name]}' for name in taken)} here; use that"
        )
    return arguments | dict(own.engine_arguments)


def _check_logprobs_mode(own: FastDeployOptions) -> None:
    """Ours are of the model itself, which is FastDeploy's default."""
    mode = own.engine_arguments.get("logprobs_mode", RAW)
    if mode != RAW:
        raise ArgumentError(
            f"engine_arguments: logprobs_mode={mode!r}: with logprobs=True it must be {RAW!r}, the log-probabilities "
            "of the model itself; leave it out"
        )


def _refuse_foreign(options: LoadOptions) -> None:
    if options.threads is not None:
        raise UnsupportedError(
            f"threads={options.threads}: backend 'fastdeploy' computes on GPUs; leave it out"
        )
    if options.kv_precision not in ("auto", "bf16"):
        raise UnsupportedError(
            f"kv_precision={options.kv_precision!r}: backend 'fastdeploy' takes bf16 here; a checkpoint that was "
            "quantized offline may bring its own; backend 'native' has fp32, bf16 and int8"
        )


def _context(config: ModelConfig, options: LoadOptions) -> int:
    trained = config.max_position_embeddings
    context = trained if options.max_context is None else options.max_context
    if not 16 <= context <= trained:
        raise ArgumentError(
            f"max_context={context}: must be from 16 to {trained}, what the model was trained for"
        )
    return context


def _quantization(options: LoadOptions, own: FastDeployOptions) -> dict[str, Any]:
    if own.quantization is not None and options.precision != "auto":
        raise ArgumentError(
            f"quantization={own.quantization!r} and precision={options.precision!r}: give one of them"
        )
    precision = "bf16" if options.precision == "auto" else options.precision
    theirs = own.quantization or QUANTIZATION[precision]
    return {} if theirs is None else {"quantization": theirs}


def _engine_settings(options: LoadOptions, own: FastDeployOptions, sequences: int) -> dict[str, Any]:
    engine = options.engine
    if engine is None:
        return {}
    arguments: dict[str, Any] = {"enable_prefix_caching": engine.prefix_cache}
    if engine.latency_target is not None:
        raise UnsupportedError(
            f"latency_target={engine.latency_target}: FastDeploy has none; backend 'native' has"
        )
    if engine.step_tokens is not None:
        if engine.step_tokens < sequences:
            raise ArgumentError(f"step_tokens={engine.step_tokens}: must be at least max_batch, {sequences}")
        arguments["max_num_batched_tokens"] = engine.step_tokens
    if engine.speculation != "off":
        if engine.speculation != "lookup":
            raise UnsupportedError(
                f"speculation={engine.speculation!r}: here 'off' or 'lookup'; give speculative_config in "
                "FastDeployOptions(engine_arguments=...) for others of FastDeploy's"
            )
        if own.guided_decoding:
            raise ArgumentError(
                "speculation and guided_decoding exclude one another in FastDeploy; leave one out"
            )
        arguments["speculative_config"] = {"method": "ngram_match", "num_speculative_tokens": DRAFT_TOKENS}
    return arguments


def _memory(config: ModelConfig, options: LoadOptions, own: FastDeployOptions, degree: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    block = own.block_size * kv_bytes_per_token(config, degree)
    if options.memory_limit is not None:
        if options.memory_limit < block:
            raise ArgumentError(
                f"memory_limit={options.memory_limit}: one block of KV cache takes {block} bytes"
            )
        arguments["num_gpu_blocks_override"] = options.memory_limit // block
    if own.host_cache is not None:
        arguments["swap_space"] = own.host_cache / 2**30
    return arguments


def check_remote(options: LoadOptions) -> None:
    """Refuse settings of ``Model.load`` that a server has settled when it started.

    Raises:
        ArgumentError: One was given.
    """
    free: Mapping[str, tuple[object, ...]] = {
        **{"precision": ("auto",), "kv_precision": ("auto",), "device": (None,)},
        **{"memory_limit": (None,), "threads": (None,), "tensor_parallel": (1, "auto")},
    }
    given = [name for name, values in free.items() if getattr(options, name) not in values]
    engine = options.engine
    if engine is not None:
        plain = (engine.prefix_cache, engine.speculation, engine.step_tokens, engine.latency_target)
        given += [] if plain == (True, "off", None, None) else ["engine (all but queue_size)"]
    if given:
        raise ArgumentError(f"{', '.join(given)}: the server has settled that when it started; leave it out")
