"""llama.cpp's Q6_K by nearest rounding, which the ``gguf`` package reads but does not write."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK, PART = 256, 16
ROWS = 4096
"""Rows at a time, to bound the memory of a vocabulary's embedding."""


def quantise_q6_k(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the bytes of a matrix [rows, columns], columns being a multiple of 256: uint8 [rows, columns / 256 * 210].

    A block of 256 holds 128 bytes of low halves, 64 of high pairs of bits, 16 int8 factors (one for 16 columns) and a
    float16 scale; a weight is scale * factor * (code - 32), code from 0 to 63.
    """
    parts = [_rows(values[at : at + ROWS]) for at in range(0, len(values), ROWS)]
    return np.concatenate(parts)


def _rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    blocks = values.reshape(-1, BLOCK // PART, PART)
    step = np.abs(blocks).max(axis=2) / 31
    scale = (step.max(axis=1) / 127).astype(np.float16)
    wide = scale.astype(np.float32)[:, None]
    factors = np.clip(np.rint(step / np.where(wide > 0, wide, 1)), 0, 127)
    unit = (factors * wide)[:, :, None]
    unit[unit == 0] = 1  # nothing but zeros
    codes = (np.clip(np.rint(blocks / unit), -32, 31) + 32).astype(np.uint8)
    return _bytes(codes.reshape(-1, 2, 4, 32), factors.astype(np.int8), scale).reshape(len(values), -1)


def _bytes(
    codes: npt.NDArray[np.uint8], factors: npt.NDArray[Any], scale: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """Codes are [blocks, halves, quarters, 32]; quarters 0 and 2, 1 and 3 share a byte's halves."""
    low, high = codes & 15, codes >> 4
    halves = low[:, :, :2] | low[:, :, 2:] << 4
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    count = len(codes)
    columns = (
        halves.reshape(count, 128),
        pairs.reshape(count, 64),
        factors.view(np.uint8).reshape(count, 16),
        scale.view(np.uint8).reshape(count, 2),
    )
    return np.concatenate(columns, axis=1)
