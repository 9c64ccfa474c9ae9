"""When memory is used up while a model is calibrated: what was needed, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ernie_accel import system
from ernie_accel.architecture import ModelConfig, tensor_specs
from ernie_accel.errors import CapacityError
from ernie_accel.quant.recipe import Recipe

__all__ = ["calibration_bytes", "memory_explained"]

_STREAMS = 2
"""Hidden states of the quantised model and of the ideal one."""


def calibration_bytes(config: ModelConfig, recipe: Recipe, tokens: int) -> int:
    """About how many bytes are taken at the peak, beside the checkpoint: float32 throughout.

    The largest matrix is there as it is and as it is rounded; for ``tokens`` there are the inputs of the widest one in
    both streams, as they are and rounded; and with error feedback a Gram matrix of that width, and what is made of it.
    """
    largest = max(spec.size for spec in tensor_specs(config).values() if len(spec.shape) == 2)
    widest = max(config.hidden_size, config.intermediate_size, config.moe_intermediate_size or 0)
    squares = 5 * widest * widest if recipe.feedback and tokens else 0
    return 4 * (2 * largest + 2 * _STREAMS * tokens * widest + squares)


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
