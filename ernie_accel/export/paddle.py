"""Writes the decoder step as operations of a Paddle 3 program.

On a CPU products are Paddle's ``fc``: oneDNN lays its matrix out anew once, where ``matmul`` reads it as it lies, or
does that in every step. Matrices are stored [in, out], the tied table of ids among them, whose columns are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.export.builder import Axis, Weight

__all__ = ["PaddleBuilder", "Stored"]

MASKED = -1e30
_RING, _SUM = 0, 0
"""All ranks; the kind of reduction."""
END = np.iinfo(np.int32).max
"""Slices that reach further end at the end of the axis."""

Array = npt.NDArray[Any]
Value = Any


@dataclass(frozen=True)
class Stored:
    """A parameter of the program, float32: ``load`` makes its values when they are written."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * 4


class PaddleBuilder:
    """The ``Builder`` of Paddle; adds to the program whose guard is entered, in static mode.

    Args:
        paddle: The package.
        precision: ``"bf16"`` marks products so that oneDNN computes them in bf16; everything else is as for fp32.
        ranks: How many compute the model together, each in a process of ``paddle.distributed``.
        device: ``"cpu"``, or ``"gpu"`` for operations that CUDA and TensorRT know better.

    Attributes:
        groups_rows: On a CPU. A GPU would have to hand every branch's condition to the host and be waited for.
        stored: The model's weights by name.
        inputs: In the order of ``input``.
        outputs: In the order of ``output``.
    """

    def __init__(self, paddle: Any, precision: str = "fp32", device: str = "cpu", ranks: int = 1) -> None:
        self._paddle = paddle
        self._ranks = ranks
        self._fused = device == "cpu"
        self._bf16 = self._fused and precision == "bf16"
        self.groups_rows = device == "cpu"
        self.stored: dict[str, Stored] = {}
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self._parameters: dict[str, Value] = {}
        self._shapes: dict[tuple[int, tuple[int, ...]], tuple[Value, Value]] = {}

    # Inputs, outputs, constants.

    def input(self, name: str, dtype: str, shape: Sequence[Axis]) -> Value:
        """See ``Builder``."""
        lengths = [length if isinstance(length, int) else -1 for length in shape]
        self.inputs.append(self._paddle.static.data(name, lengths, dtype))
        return self.inputs[-1]

    def output(self, name: str, value: Value, dtype: str, shape: Sequence[Axis]) -> None:
        """See ``Builder``. Paddle names outputs itself; their order stays."""
        self.outputs.append(value)

    def constant(self, values: Array) -> Value:
        """See ``Builder``."""
        return self._paddle.assign(np.ascontiguousarray(values).reshape(values.shape))

    def parameter(self, weight: Weight) -> Value:
        """See ``Builder``."""
        return self._store(Stored(weight.name, weight.shape, weight.load))

    # Products with parameters.

    def embed(self, ids: Value, table: Weight) -> Value:
        """See ``Builder``. Looks up columns, so that a tied head needs no second table."""
        columns = self._paddle.index_select(self._matrix(table), ids, axis=1)
        return self._paddle.transpose(columns, [1, 0])

    def linear(self, x: Value, matrix: Weight) -> Value:
        """See ``Builder``. A copy of the input stands between oneDNN's bf16 pass and its rule about lone products.

        The pass turns a product back to fp32 if all that surrounds it is fp32, and takes a copy to be neither.
        """
        if matrix.keep or not self._fused:
            return self._paddle.matmul(x, self._matrix(matrix))
        if self._bf16:
            x = self._paddle.assign(x)
        return self._paddle._C_ops.fc(x, self._matrix(matrix), self._no_bias(matrix.shape[0]), 1, "", False)

    def reduce(self, x: Value) -> Value:
        """See ``Builder``. In place, and its result used: one that nobody used would be taken out of the program."""
        return self._paddle._C_ops.all_reduce_(x, _RING, _SUM) if self._ranks > 1 else x

    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        """See ``Builder``."""
        norm = self._paddle.incubate.nn.functional.fused_rms_norm
        return norm(x, self.parameter(weight), None, eps, 1)[0]

    # Shapes.

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """See ``Builder``."""
        return self._paddle.reshape(x, list(shape))

    def unflatten(self, x: Value, like: Value, tail: Sequence[int]) -> Value:
        """See ``Builder``."""
        key = (id(like), tuple(tail))
        if key not in self._shapes:
            lead = self._paddle.cast(self._paddle.shape(like)[0:2], "int64")
            shape = self._paddle.concat([lead, self.constant(np.array(tail, np.int64))])
            self._shapes[key] = (like, shape)
        return self._paddle.reshape(x, self._shapes[key][1])

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """See ``Builder``."""
        return self._paddle.transpose(x, list(order))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """See ``Builder``."""
        return self._paddle.concat(list(parts), axis=axis)

    def stack(self, parts: Sequence[Value]) -> Value:
        """See ``Builder``."""
        return self._paddle.stack(list(parts), axis=0)

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
        """See ``Builder``."""
        return list(self._paddle.split(x, list(sizes), axis=axis))

    def split_at(self, x: Value, point: Value, axis: int) -> tuple[Value, Value]:
        """See ``Builder``."""
        cut = self._paddle.slice
        return cut(x, [axis], [0], [point]), cut(x, [axis], [point], [END])

    def length(self, x: Value, axis: int) -> Value:
        """See ``Builder``."""
        return self._paddle.cast(self._paddle.shape(x)[axis : axis + 1], "int64")

    def count(self, length: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.arange(0, length, 1, dtype="int64")

    # Arithmetic.

    def add(self, a: Value, b: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.add(a, b)

    def subtract(self, a: Value, b: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.subtract(a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.multiply(a, b)

    def divide(self, a: Value, b: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.divide(a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.maximum(a, b)

    def sqrt(self, x: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.sqrt(x)

    def sum(self, x: Value, axis: int, keep: bool) -> Value:
        """See ``Builder``."""
        return self._paddle.sum(x, axis=axis, keepdim=keep)

    def cos(self, x: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.cos(x)

    def sin(self, x: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.sin(x)

    def silu(self, x: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.nn.functional.silu(x)

    def softmax(self, x: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.nn.functional.softmax(x, axis=-1)

    def cast(self, x: Value, dtype: str) -> Value:
        """See ``Builder``."""
        return self._paddle.cast(x, dtype)

    def bias_where(self, allowed_low: Value, allowed_high: Value, strict: bool) -> Value:
        """See ``Builder``."""
        p = self._paddle
        allowed = (p.less_than if strict else p.less_equal)(allowed_low, allowed_high)
        return p.scale(p.cast(p.logical_not(allowed), "float32"), MASKED)

    def matmul(self, a: Value, b: Value, transpose_b: bool = False) -> Value:
        """See ``Builder``."""
        return self._paddle.matmul(a, b, transpose_y=transpose_b)

    # Rows and routing.

    def gather_rows(self, x: Value, rows: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.gather(x, rows, axis=0)

    def top_k(self, x: Value, k: int) -> Value:
        """See ``Builder``. Paddle's own ``topk`` leaves the order of equals open."""
        order = self._paddle.argsort(x, axis=-1, descending=True, stable=True)
        return self._paddle.slice(order, [1], [0], [k])

    def take(self, x: Value, places: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.take_along_axis(x, places, 1, broadcast=False)

    def scatter(self, like: Value, places: Value, values: Value) -> Value:
        """See ``Builder``."""
        zeros = self._paddle.scale(like, 0.0)
        return self._paddle.put_along_axis(zeros, places, values, 1, broadcast=False)

    # Grouping.

    def order(self, keys: Value) -> Value:
        """See ``Builder``."""
        return self._paddle.argsort(keys, axis=0, stable=True)

    def by_group(
        self, x: Value, keys: Value, order: Value, compute: Sequence[Callable[[Value], Value]]
    ) -> Value:
        """See ``Builder``. A key without rows gives one row of zeros, since nothing empty comes whole out of a branch.

        So what follows it lies a row further back.
        """
        p = self._paddle
        limits = self.constant(np.arange(len(compute) + 1, dtype=np.int64).reshape(-1, 1))
        below = p.less_than(p.reshape(keys, [1, -1]), limits)
        bounds = p.sum(p.cast(below, "int64"), axis=1)  # rows of lower keys than 0, 1, ...
        first, last = bounds[:-1], bounds[1:]
        some = p.less_than(first, last)
        nothing = self.constant(np.zeros((1, x.shape[1]), np.float32))
        parts = [
            p.static.nn.cond(one, partial(_rows_by, p, x, start, end, function), lambda: nothing)
            for function, one, start, end in zip(
                compute, *(p.split(v, len(compute), axis=0) for v in (some, first, last)), strict=True
            )
        ]
        behind = p.gather(p.cumsum(p.cast(p.logical_not(some), "int64")), keys)
        return self.gather_rows(p.concat(parts, axis=0), p.add(self.order(order), behind))

    # Parameters.

    def _matrix(self, weight: Weight) -> Value:
        """A matrix [out, in] as it is stored, [in, out]."""
        return self._store(
            Stored(weight.name, weight.shape[::-1], lambda: np.ascontiguousarray(weight.load().T))
        )

    def _no_bias(self, width: int) -> Value:
        return self._store(Stored(f"no_bias.{width}", (width,), lambda: np.zeros(width, np.float32)))

    def _store(self, stored: Stored) -> Value:
        if stored.name not in self.stored:
            self.stored[stored.name] = stored
            with _outside_branches(self._paddle):
                self._parameters[stored.name] = self._paddle.static.create_parameter(
                    list(stored.shape), "float32", name=stored.name
                )
        return self._parameters[stored.name]


def _rows_by(paddle: Any, x: Value, start: Value, end: Value, function: Callable[[Value], Value]) -> Value:
    return function(paddle.slice(x, [0], [start], [end]))


@contextmanager
def _outside_branches(paddle: Any) -> Iterator[None]:
    """What is added to the program is added at its top, where alone a predictor looks for parameters."""
    pir = paddle.pir
    here = pir.get_current_insertion_point()
    pir.set_insertion_point_to_block_end(paddle.static.default_main_program().global_block())
    try:
        yield
    finally:
        pir.set_insertion_point(here)
