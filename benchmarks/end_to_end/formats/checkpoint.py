"""The checkpoint that every engine computes: a published shape with random weights."""

from __future__ import annotations

import numpy as np

from ernie_accel.architecture.ernie4_5_moe import BIAS_SUFFIX
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.testing import synthetic
from ernie_accel.testing.synthetic import SyntheticCheckpoint

__all__ = ["Even", "label", "random_checkpoint"]


class Even(SyntheticCheckpoint):
    """Biases that differ at random would send most tokens to the same experts; training sees to it that they do not."""

    def tensor(self, name: str) -> Tensor:
        """As ``synthetic`` makes it; correction biases are all the same."""
        found = super().tensor(name)
        if not name.endswith(BIAS_SUFFIX):
            return found
        return found._replace(data=np.full_like(found.data, 40))


def random_checkpoint(shape: str, *, layers: int | None = None) -> SyntheticCheckpoint:
    """Return random weights of a shape, or of its first layers, whose tokens choose their experts evenly."""
    return Even(synthetic(shape, layers=layers).config, shape, 0, "bfloat16")


def label(shape: str) -> str:
    """What files of a shape are called: those of a mixture of experts were once made with uneven biases."""
    with synthetic(shape) as checkpoint:
        return f"{shape}-even" if checkpoint.config.is_moe else shape
