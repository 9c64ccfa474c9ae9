"""Activations as quantised matrices see them, in float32: csrc/kernels/linear/prepare.h in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ernie_accel.quant.calculator import Array

__all__ = ["choose_exact", "mean_squares", "rounded"]

Columns = npt.NDArray[np.int32]

_ROWS_AT_ONCE = 128
"""Rows whose intermediate results stay in the cache."""


def rounded(x: Array, group: int, exact: Columns) -> Array:
    """Return x [T, K] after a round trip through int8 with a scale for each row and ``group`` columns.

    Columns ``exact`` stay as they are and do not widen the scales.
    """
    out = np.empty_like(x, order="C")
    for at in range(0, len(x), _ROWS_AT_ONCE):
        rows = slice(at, at + _ROWS_AT_ONCE)
        out[rows] = _rounded(x[rows], group, exact)
    return out


def _rounded(x: Array, group: int, exact: Columns) -> Array:
    inner = x.copy()
    inner[:, exact] = 0
    grouped = _grouped(inner, group)
    top = np.maximum(np.abs(grouped).max(axis=-1, keepdims=True), np.float32(1e-30))
    grouped *= np.float32(127) / top
    np.rint(grouped, out=grouped)
    grouped *= top / np.float32(127)
    out = grouped.reshape(len(x), grouped.shape[1] * group)[:, : x.shape[1]]
    out[:, exact] = x[:, exact]
    return out


def mean_squares(x: Array) -> Array:
    """Return the mean of the squares of each column of x [T, K]."""
    mean: Array = (np.einsum("tk,tk->k", x, x, dtype=np.float64) / len(x)).astype(np.float32)
    return mean


def choose_exact(x: Array, column_norms: Array, group: int, count: int) -> Columns:
    """Return the ``count`` columns that cost most in int8, ascending.

    Rounding the group g of a row costs in the result about top^2 * norm(g), ``top`` being its largest magnitude and
    norm(g) the squared weights of its columns: the column that is taken is, again and again, the one without which that
    falls most.

    Args:
        x: Inputs, float32 [T, K].
        column_norms: Sum of the squared weights of each column, [K].
        group: Columns that share a scale.
        count: How many are wanted; fewer come if there are fewer columns.
    """
    count = min(count, x.shape[1] // 2 * 2)
    left = np.abs(_grouped(x, group))
    norms = _grouped(column_norms[None], group)[0].sum(axis=-1)
    gains = [_gain(left[:, g], norms[g]) for g in range(left.shape[1])]
    chosen: set[int] = set()
    for _ in range(count):
        g = int(np.argmax([gain for gain, _ in gains]))
        column = g * group + gains[g][1]
        if column in chosen or column >= x.shape[1]:  # nothing is left to gain anywhere
            column = min(set(range(x.shape[1])) - chosen)
        chosen.add(column)
        left[:, column // group, column % group] = 0
        gains[column // group] = _gain(left[:, column // group], norms[column // group])
    return np.asarray(sorted(chosen), np.int32)


def _gain(left: Array, norm: float) -> tuple[float, int]:
    """Return how far the cost of a group [T, n] falls without its best column, and which that is."""
    if left.shape[1] == 1:
        return float(norm * np.sum(np.square(left), dtype=np.float64)), 0
    largest = left.argmax(axis=-1)
    two = np.partition(left, -2, axis=-1)[:, -2:]
    drop = np.square(two[:, 1], dtype=np.float64) - np.square(two[:, 0], dtype=np.float64)
    by_column = np.bincount(largest, weights=drop, minlength=left.shape[1])
    best = int(by_column.argmax())
    return float(norm * by_column[best]), best


def _grouped(x: Array, group: int) -> Array:
    """Return x [T, K] as [T, groups, group], zeros at the end."""
    missing = -x.shape[1] % group
    if missing:
        x = np.pad(x, ((0, 0), (0, missing)))
    return np.ascontiguousarray(x).reshape(len(x), x.shape[1] // group, group)
