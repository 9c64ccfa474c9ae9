"""When memory is used up while a model is calibrated: what was needed, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ernie_accel import system
from ernie_accel.architecture import ModelConfig
from ernie_accel.errors import CapacityError
from ernie_accel.quant.recipe import Recipe

__all__ = ["calibration_bytes", "memory_explained"]

_FEED_FORWARD = 4.5
_HIDDEN = 3.0
"""Arrays of the width of the feed-forward, and of the hidden size, that are there at once for each stream: measured."""

_HEAD = 6.1
"""Bytes of a weight of the head: float32, its codes, and what they are packed to."""

_KEPT = 0.33
"""Share of what the layers took that is not free yet when the head's turn comes."""


def calibration_bytes(config: ModelConfig, recipe: Recipe, tokens: int) -> int:
    """About how many bytes are taken at the peak, beside the checkpoint; the constants were measured.

    In a layer there are its matrices in float32 and rounded, for ``tokens`` the inputs and results of the widest one,
    in two streams where the recipe follows the ideal one, and with error feedback a Gram matrix of that width and what
    is made of it. The vocabulary head comes last, and is larger than any layer of a small model.
    """
    widest = max(config.intermediate_size, config.moe_intermediate_size or 0)
    streams = 2 if recipe.follow > 0 else 1
    inputs = streams * tokens * (_FEED_FORWARD * widest + _HIDDEN * config.hidden_size)
    squares = 5 * widest * widest if recipe.feedback and tokens else 0
    layer = 4 * (inputs + squares + 6 * config.hidden_size * widest)
    head = _HEAD * config.vocab_size * config.hidden_size + _KEPT * layer
    return int(max(layer, head))


@contextmanager
def memory_explained(config: ModelConfig, recipe: Recipe, tokens: int) -> Iterator[None]:
    """Turn MemoryError, from NumPy or the native core, into CapacityError."""
    try:
        yield
    except MemoryError as error:
        fewer = f"calibrate on fewer than {tokens:,} tokens, " if tokens else ""
        raise CapacityError(
            f"quantizing takes about {calibration_bytes(config, recipe, tokens):,} bytes beside the checkpoint; "
            f"{system.available_memory():,} bytes are available; {fewer}free memory, or quantize on a larger machine "
            "and copy the directory"
        ) from error
