"""Matrices whose codes were chosen before loading, and the checkpoint that holds them.

Quantization (``ernie_accel.quant``) makes them, a backend multiplies them as they are: it never calibrates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.base import Checkpoint

__all__ = ["ActivationGroups", "QuantisedCheckpoint", "QuantisedMatrix", "bfloat16_bits", "bfloat16_values"]

Bits = Literal[4, 6, 8]

SUB_COLUMNS = 16
"""Columns that share a whole-number factor in 4 bits."""


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16 (ties to even) of finite float32 values."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat16_values(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, kw_only=True)
class QuantisedMatrix:
    """A matrix [rows, cols] as codes.

    W[n, k] = scale[n, k // group] * code[n, k], in 4 bits times sub[n, k // 16] too; an exact column is
    ``exact_weights`` instead, and its codes are zero.

    Attributes:
        bits: 8: codes from -127 to 127; 6: from -32 to 31; 4: from -8 to 7.
        group: Columns that share a scale: a multiple of 16, up to 256, and of the group of the activations.
        codes: int8 [rows, cols].
        scales: bfloat16 bit patterns, uint16 [rows, ceil(cols / group)].
        subs: uint8 [rows, ceil(cols / 16)], from 0 to 15, in 4 bits; else None.
        exact: int32 [n], ascending columns that are kept in bfloat16; n is even and at most 64.
        exact_weights: bfloat16 bit patterns, uint16 [rows, n].
    """

    bits: Bits
    group: int
    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.uint16]
    subs: npt.NDArray[np.uint8] | None
    exact: npt.NDArray[np.int32]
    exact_weights: npt.NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.codes.shape
        return rows, cols

    @property
    def parts(self) -> tuple[Any, ...]:
        """All fields in their order, which is what ``_native.Tensor.quantised`` takes."""
        return (
            self.bits,
            self.group,
            self.codes,
            self.scales,
            self.subs,
            self.exact,
            self.exact_weights,
        )

    def to_float32(self) -> npt.NDArray[np.float32]:
        """Values that the codes stand for, float32 [rows, cols]."""
        out = self.codes.astype(np.float32)
        _scale_groups(out, bfloat16_values(self.scales), self.group)
        if self.subs is not None:
            _scale_groups(out, self.subs.astype(np.float32), SUB_COLUMNS)
        out[:, self.exact] = bfloat16_values(self.exact_weights)
        return out


def _scale_groups(values: npt.NDArray[np.float32], factors: npt.NDArray[np.float32], group: int) -> None:
    """Multiply each ``group`` columns of values by their column of factors; the last group may be narrower."""
    if values.shape[1] == group * factors.shape[1] and values.flags.c_contiguous:
        grouped = values.reshape(len(values), -1, group)  # the same products in one pass
        grouped *= factors[:, :, None]
        return
    for index in range(factors.shape[1]):
        values[:, index * group : (index + 1) * group] *= factors[:, index, None]


@dataclass(frozen=True, kw_only=True)
class ActivationGroups:
    """Columns of activations that share an int8 scale: inputs of most matrices, of ``down_proj``, of the head."""

    body: int = 64
    down: int = 32
    head: int = 64


class QuantisedCheckpoint(Checkpoint, Protocol):
    """A checkpoint whose matrices are codes.

    ``tensor`` still serves what is no matrix (norms, router and its bias), with what was folded into it.
    """

    @property
    def precision(self) -> Literal["int8", "int4"]:
        """Precision of the body."""
        ...

    @property
    def activations(self) -> ActivationGroups:
        """How inputs are quantised."""
        ...

    @property
    def recipe(self) -> str:
        """How the codes were chosen, one sentence: what ``model.info`` shows."""
        ...

    def matrix(self, name: str) -> QuantisedMatrix:
        """Return the matrix of that ``-PT`` name. Raises CheckpointError if there is none."""
        ...
