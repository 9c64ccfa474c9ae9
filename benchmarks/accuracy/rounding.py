"""Nearest rounding to a few bits, back in float32: what the baselines do to weights and activations.

Every function takes and returns float32 [rows, cols] and rounds along the columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Rounding = Callable[[Float32], Float32]

BLOCK = 32


def integers(bits: int, group: int | None = None) -> Rounding:
    """Symmetric codes up to 2^(bits-1) - 1 with one float32 scale for each row and group; None: for each row."""
    top = np.float32(2 ** (bits - 1) - 1)

    def nearest(x: Float32) -> Float32:
        blocks = _blocks(x, group or x.shape[1])
        scale = np.abs(blocks).max(axis=2, keepdims=True) / top
        codes = np.rint(blocks * _inverse(scale))
        return _joined(codes * scale, x.shape)

    return nearest


def q4_0(w: Float32) -> Float32:
    """Blocks of 32: scale = (the value of largest magnitude) / -8 in fp16; codes 0 to 15 stand for -8 to 7.

    4.5 bits a weight; llama.cpp's Q4_0.
    """
    blocks = _blocks(w, BLOCK)
    at = np.abs(blocks).argmax(axis=2)[..., None]
    scale = np.take_along_axis(blocks, at, axis=2) / np.float32(-8)
    codes = np.clip(np.floor(blocks * _inverse(scale) + np.float32(8.5)), 0, 15)
    return _joined((codes - 8) * _half(scale), w.shape)


def q8_0(w: Float32) -> Float32:
    """Blocks of 32: scale = largest magnitude / 127 in fp16; codes -127 to 127. 8.5 bits a weight; llama.cpp's Q8_0."""
    blocks = _blocks(w, BLOCK)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    return _joined(np.rint(blocks * _inverse(scale)) * _half(scale), w.shape)


def _blocks(x: Float32, width: int) -> Float32:
    """[rows, blocks, width], filled up with zeros."""
    rows, cols = x.shape
    return np.pad(x, ((0, 0), (0, -cols % width))).reshape(rows, -1, width)


def _joined(blocks: Float32, shape: tuple[int, ...]) -> Float32:
    rows, cols = shape
    return np.ascontiguousarray(blocks.reshape(rows, -1)[:, :cols], np.float32)


def _inverse(scale: Float32) -> Float32:
    inverse: Float32 = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return inverse


def _half(scale: Float32) -> Float32:
    half: Float32 = scale.astype(np.float16).astype(np.float32)
    return half
