"""Names of precisions in plans: ours, and what other systems call the same."""

from __future__ import annotations

from ernie_accel.errors import ArgumentError

__all__ = ["ALIASES", "KV_PRECISIONS", "PRECISIONS", "UNSAID", "kv_precision_name", "precision_name"]

PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int8", "int4", "w4a8", "int2")
"""From the widest to the narrowest."""

ALIASES = {
    "wint8": "int8",
    "wint4": "int4",
    "wint2": "int2",
    "2bit": "int2",
    "2-bit": "int2",
    "2bits": "int2",
    "block_wise_fp8": "fp8",
    "w4a8c8": "w4a8",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}


UNSAID = "fp32"
"""What is planned for with a backend that does not say which precisions it has."""

KV_PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int8")
"""Formats of keys and values; a backend refuses what it lacks of them."""


def precision_name(name: object, *, what: str = "precision", among: tuple[str, ...] = PRECISIONS) -> str:
    """Return our name of a precision; ``"auto"`` stays. Raises ArgumentError, naming those that there are."""
    given = str(name).lower()
    found = ALIASES.get(given, given)
    if found == "auto" or found in among:
        return found
    raise ArgumentError(f"{what}={name!r}: must be one of auto, {', '.join(among)}")


def kv_precision_name(name: object) -> str:
    """Return our name of a precision of the KV cache, as ``precision_name`` does."""
    return precision_name(name, what="kv_precision", among=KV_PRECISIONS)
