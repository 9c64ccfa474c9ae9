"""What an engine that serves on accelerators takes of one device: FastDeploy 2.x, by its documentation.

For backends whose engine lives in other processes on devices that are not here, and that can only be asked once it
runs. Everything is of one tensor-parallel rank. What no source gives is assumed, and named so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ernie_accel.architecture.counts import Part, kv_heads_of_rank, parameter_counts
from ernie_accel.architecture.liveness import activation_bytes
from ernie_accel.backends.base import Footprint, LoadOptions

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["BLOCK_TOKENS", "FORMATS", "MAX_SEQUENCES", "STEP_TOKENS", "accelerator_footprint", "weight_bits"]

BLOCK_TOKENS = 64
"""``block_size``: tokens of one KV block."""

STEP_TOKENS = 8192
"""``max_num_batched_tokens`` with the current scheduler."""

MAX_SEQUENCES = 256
"""Largest ``max_num_seqs``."""

_RUNTIME = 1 << 30
"""Assumed: half for the CUDA context of a process (0.3 to 0.6 GB are reported), half for kernels and their
workspaces."""

_COMMUNICATION = 256 << 20
"""Assumed: buffers of the collective library and of the custom all-reduce, beside the largest message."""

FORMATS: Mapping[str, Mapping[str, float]] = {
    # bits of a weight by class; "" is every class that is not named. Scales of a whole column are left out.
    "fp32": {"": 32},
    "bf16": {"": 16},
    "fp16": {"": 16},
    "fp8": {"": 8 + 32 / 128**2, "embedding": 16, "head": 16},
    "int8": {"": 8, "embedding": 16, "head": 16},
    "int4": {"": 4, "embedding": 16, "head": 16},
    "w4a8": {"": 8, "experts": 4, "embedding": 16, "head": 16},
    # From the published size of the 300B checkpoint, 89 GB: what is left for the experts beside the rest in int8.
    "int2": {"": 8, "experts": 2.1, "embedding": 16, "head": 16},
}
"""Of FastDeploy's bf16, block_wise_fp8, wint8, wint4, w4a8 and wint2: embedding and head stay in 16 bits."""

_KV_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}

_MIXED = {"": 8, "experts": 4, "embedding": 16, "head": 16}
"""wint4 of a mixture of experts: experts in 4 bits, the rest in 8."""


def weight_bits(config: ModelConfig, precision: str, name: str) -> float:
    """Return the bits of one parameter of a class."""
    if name in ("router", "norm"):
        return 32 if name == "router" or precision == "fp32" else 16
    form = _MIXED if precision == "int4" and config.is_moe else FORMATS[precision]
    return form.get(name, form[""])


def accelerator_footprint(config: ModelConfig, options: LoadOptions) -> Footprint:
    """Return what one rank takes.

    KV blocks by the formula of FastDeploy's documentation: 2 x block_size x head_dim x KV heads of the rank x layers
    (those of multi-token prediction too) x bytes. Working memory is the peak of a step of ``step_tokens`` tokens
    (``ernie_accel.architecture.liveness``).
    """
    tensor = 1 if options.tensor_parallel == "auto" else options.tensor_parallel
    precision: str = "bf16" if options.precision == "auto" else options.precision
    kv = _kv_precision(precision, options.kv_precision)
    sequences = options.max_batch or 8
    tokens = max(options.step_tokens or STEP_TOKENS, sequences)
    counts = parameter_counts(config, Part(tensor=tensor), mtp=options.multi_token)
    layers = config.num_hidden_layers
    if options.multi_token:
        layers += config.num_nextn_predict_layers
    heads = kv_heads_of_rank(config, tensor)
    message = 2 * tokens * config.hidden_size * 2
    return Footprint(
        kv_per_token=2 * heads * config.head_dim * layers * _KV_BYTES[kv],
        scratch=activation_bytes(config, tokens=tokens, rows=sequences, tensor=tensor),
        runtime=_RUNTIME,
        page_tokens=BLOCK_TOKENS,
        weights={name: int(n * weight_bits(config, precision, name) / 8) for name, n in counts.items()},
        communication=_COMMUNICATION + message if tensor > 1 else 0,
        step_tokens=tokens,
        kv_precision=kv,
    )


def _kv_precision(precision: str, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "int8" if precision == "w4a8" else "bf16"
