"""The ONNX writer in other precisions: what differs is how matrices are stored and multiplied.

Norms, router, softmax, rotation and the residual stream stay float32 in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.errors import ArgumentError
from ernie_accel.export.builder import Weight
from ernie_accel.export.onnx import OnnxBuilder, Stored

__all__ = ["BLOCKS", "BlockInt8Builder", "ChannelInt8Builder", "Fp16Builder", "make_builder"]

Array = npt.NDArray[np.float32]

BLOCKS = (32, 64, 128)
"""Columns that may share a scale in the block form."""

CHUNK = 1 << 24
"""Values that are quantised at a time, so that temporary arrays stay small."""


def make_builder(precision: str, *, block: int | None = None, groups_rows: bool = True) -> OnnxBuilder:
    """Return the writer for ``fp32``, ``fp16`` or ``int8``; with a ``block``, int8 is for ONNX Runtime alone."""
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision={precision!r}: ONNX is written in {', '.join(PRECISIONS)}")
    if precision == "int8" and block is not None:
        return BlockInt8Builder(block, groups_rows=groups_rows)
    return PRECISIONS[precision](groups_rows=groups_rows)


class Fp16Builder(OnnxBuilder):
    """Matrices and products in float16, keys and values too."""

    def embed(self, ids: str, table: Weight) -> str:
        """See ``Builder``."""
        return self.cast(self._node("Gather", [self._half(table), ids], axis=0), "float32")

    def linear(self, x: str, matrix: Weight) -> str:
        """See ``Builder``."""
        if matrix.keep:
            return super().linear(x, matrix)
        product = self._node("Gemm", [self.cast(x, "float16"), self._half(matrix)], transB=1)
        return self.cast(product, "float32")

    def matmul(self, a: str, b: str, transpose_b: bool = False) -> str:
        """See ``Builder``."""
        return self.cast(super().matmul(a, b, transpose_b), "float32")

    def _half(self, weight: Weight) -> str:
        load = _checked_half(weight)
        return self._store(Stored(weight.name, "float16", weight.shape, load))


class ChannelInt8Builder(OnnxBuilder):
    """Weight-only int8 by the standard: a scale for each output channel, ``DequantizeLinear`` before the product."""

    def embed(self, ids: str, table: Weight) -> str:
        """See ``Builder``. Stored as it is, apart from the head: runtimes fold codes that only one product reads."""
        both = _Quantiser(table.load, table.shape[1])
        codes = self._store(Stored(f"{table.name}.rows", "int8", table.shape, both.codes))
        scales = self._store(
            Stored(
                f"{table.name}.row_scales",
                "float32",
                (table.shape[0], 1),
                lambda: both.scales().reshape(-1, 1),
            )
        )
        rows = self.cast(self._node("Gather", [codes, ids], axis=0), "float32")
        return self.multiply(rows, self._node("Gather", [scales, ids], axis=0))

    def linear(self, x: str, matrix: Weight) -> str:
        """See ``Builder``. Stored as [in, out], the form that runtimes know as a product with quantised weights."""
        if matrix.keep:
            return super().linear(x, matrix)
        codes, scales = self._quantised(matrix)
        return self._node("MatMul", [x, self._node("DequantizeLinear", [codes, scales], axis=1)])

    def _quantised(self, weight: Weight) -> tuple[str, str]:
        rows, columns = weight.shape
        both = _Quantiser(weight.load, columns)
        codes = Stored(f"{weight.name}.codes", "int8", (columns, rows), lambda: both.codes().T.copy())
        return self._store(codes), self._store(
            Stored(f"{weight.name}.scales", "float32", (rows,), both.scales)
        )


class BlockInt8Builder(OnnxBuilder):
    """Int8 for ONNX Runtime alone: ``MatMulNBits``, a scale for every ``block`` columns.

    It also rounds the other factor to int8 by blocks, which is what makes it fast.
    """

    domains = ("", "com.microsoft")

    def __init__(self, block: int, *, groups_rows: bool = True) -> None:
        super().__init__(groups_rows=groups_rows)
        self.block = block

    def embed(self, ids: str, table: Weight) -> str:
        """See ``Builder``."""
        codes, scales = self._quantised(table)
        centred = self.subtract(
            self.cast(self._node("Gather", [codes, ids], axis=0), "float32"), self.constant(np.float32(128))
        )
        width, blocks = table.shape[1], self._blocks(table)
        scale_rows = self._node("Gather", [self.reshape(scales, [-1, blocks, 1]), ids], axis=0)
        rows = self.reshape(self.multiply(centred, scale_rows), [-1, blocks * self.block])
        return rows if width % self.block == 0 else self.split(rows, [width, -width % self.block], 1)[0]

    def linear(self, x: str, matrix: Weight) -> str:
        """See ``Builder``."""
        if matrix.keep:
            return super().linear(x, matrix)
        rows, columns = matrix.shape
        return self._node(
            "MatMulNBits",
            [x, *self._quantised(matrix)],
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=8,
            block_size=self.block,
            accuracy_level=4,
        )

    def _quantised(self, weight: Weight) -> tuple[str, str]:
        rows, blocks = weight.shape[0], self._blocks(weight)
        both = _Quantiser(weight.load, self.block)
        codes = Stored(
            f"{weight.name}.codes",
            "uint8",
            (rows, blocks, self.block),
            lambda: (both.codes().view(np.uint8) + np.uint8(128)).reshape(rows, blocks, self.block),
        )
        return self._store(codes), self._store(
            Stored(f"{weight.name}.scales", "float32", (rows * blocks,), both.scales)
        )

    def _blocks(self, weight: Weight) -> int:
        return -(-weight.shape[1] // self.block)


PRECISIONS: dict[str, type[OnnxBuilder]] = {
    "fp32": OnnxBuilder,
    "fp16": Fp16Builder,
    "int8": ChannelInt8Builder,
}


class _Quantiser:
    """Codes and scales of one matrix by nearest rounding, symmetric; made together, kept until both were asked for."""

    def __init__(self, load: Callable[[], Array], block: int) -> None:
        self._load = load
        self._block = block
        self._made: dict[str, npt.NDArray[Any]] = {}

    def codes(self) -> npt.NDArray[np.int8]:
        """[rows, columns], zeros in the columns that fill the last block."""
        return self._take("codes")

    def scales(self) -> Array:
        """[rows * blocks]."""
        return self._take("scales")

    def _take(self, name: str) -> npt.NDArray[Any]:
        if name not in self._made:
            self._made = _quantise(self._load(), self._block)
        return self._made.pop(name)


def _quantise(x: Array, block: int) -> dict[str, npt.NDArray[Any]]:
    rows, columns = x.shape
    blocks = -(-columns // block)
    codes = np.zeros((rows, blocks * block), np.int8)
    scales = np.empty((rows, blocks), np.float32)
    size = max(1, CHUNK // columns)
    for start in range(0, rows, size):
        part = np.zeros((min(size, rows - start), blocks * block), np.float32)
        part[:, :columns] = x[start : start + size]
        parts = part.reshape(-1, blocks, block)
        largest = np.abs(parts).max(axis=2)
        scales[start : start + size] = scale = np.where(largest > 0, largest / np.float32(127), 1)
        parts /= scale[:, :, None]
        codes[start : start + size] = np.rint(part)
    return {"codes": codes, "scales": scales.reshape(-1)}


def _checked_half(weight: Weight) -> Callable[[], npt.NDArray[Any]]:
    def load() -> npt.NDArray[Any]:
        values = weight.load()
        largest = float(np.abs(values).max(initial=0))
        if largest > float(np.finfo(np.float16).max):
            raise ArgumentError(
                f"precision='fp16': {weight.name} holds {largest:.6g}, which float16 cannot; choose fp32"
            )
        return values.astype(np.float16)

    return load
