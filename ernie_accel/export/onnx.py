"""Writes the decoder step as ONNX, IR version 8 and opset 15: what ONNX Runtime, OpenVINO and TensorRT of 2022 read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ernie_accel.errors import MissingExtraError
from ernie_accel.export.builder import Axis, Weight

if TYPE_CHECKING:
    import onnx

__all__ = [
    "IR_VERSION",
    "OPSET",
    "OnnxBuilder",
    "Stored",
    "import_onnx",
    "in_memory_model",
    "make_model",
    "onnx_type",
]

IR_VERSION, OPSET = 8, 15
MASKED = np.float32(-1e30)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """An initializer: ``load`` makes its values when they are written or handed to a runtime."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class OnnxBuilder:
    """The ``Builder`` of ONNX; a value is the name of an edge.

    Attributes:
        stored: The model's weights, in order of first use. They are not part of ``graph()``: they go into a file, or
            to a runtime in memory.
    """

    domains: tuple[str, ...] = ("",)
    """Sets of operations that the graph uses; "" is the standard's."""

    def __init__(self, *, groups_rows: bool = True) -> None:
        self.groups_rows = groups_rows
        self.stored: dict[str, Stored] = {}
        self._helper = import_onnx().helper
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._small: list[onnx.TensorProto] = []
        self._shapes: dict[tuple[str, tuple[int, ...]], str] = {}
        self._count = 0

    def graph(self, name: str) -> onnx.GraphProto:
        """The nodes, inputs, outputs and small constants."""
        return self._helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=self._small
        )

    # Inputs, outputs, constants.

    def input(self, name: str, dtype: str, shape: Sequence[Axis]) -> str:
        """See ``Builder``."""
        self._inputs.append(self._helper.make_tensor_value_info(name, onnx_type(dtype), list(shape)))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Sequence[Axis]) -> None:
        """See ``Builder``."""
        self._rename(value, name)
        self._outputs.append(self._helper.make_tensor_value_info(name, onnx_type(dtype), list(shape)))

    def constant(self, values: Array) -> str:
        """See ``Builder``."""
        values = np.asarray(values, order="C")
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            tensor = self._helper.make_tensor(
                name, onnx_type(str(values.dtype)), values.shape, values.tobytes(), raw=True
            )
            self._small.append(tensor)
        return self._constants[key]

    def parameter(self, weight: Weight) -> str:
        """See ``Builder``."""
        return self._store(Stored(weight.name, "float32", weight.shape, weight.load))

    # Products with parameters.

    def embed(self, ids: str, table: Weight) -> str:
        """See ``Builder``. The table is the one that a tied head multiplies by."""
        return self._node("Gather", [self.parameter(table), ids], axis=0)

    def linear(self, x: str, matrix: Weight) -> str:
        """See ``Builder``. ``Gemm`` takes the matrix as it is stored, [out, in]."""
        return self._node("Gemm", [x, self.parameter(matrix)], transB=1)

    def reduce(self, x: str) -> str:
        """See ``Builder``: one rank computes the graph."""
        return x

    def rms_norm(self, x: str, weight: Weight, eps: float) -> str:
        """See ``Builder``. The pattern that runtimes know as one operation."""
        square = self._node("Pow", [x, self.constant(np.float32(2))])
        mean = self._node("ReduceMean", [square], axes=[-1], keepdims=1)
        root = self._node("Sqrt", [self.add(mean, self.constant(np.float32(eps)))])
        return self.multiply(self.divide(x, root), self.parameter(weight))

    # Shapes.

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """See ``Builder``."""
        return self._node("Reshape", [x, self._ints(shape)])

    def unflatten(self, x: str, like: str, tail: Sequence[int]) -> str:
        """See ``Builder``."""
        key = (like, tuple(tail))
        if key not in self._shapes:
            lead = self._node("Slice", [self._node("Shape", [like]), self._ints([0]), self._ints([2])])
            self._shapes[key] = self.concat([lead, self._ints(tail)], 0)
        return self._node("Reshape", [x, self._shapes[key]])

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """See ``Builder``."""
        return self._node("Transpose", [x], perm=list(order))

    def concat(self, parts: Sequence[str], axis: int) -> str:
        """See ``Builder``."""
        return self._node("Concat", list(parts), axis=axis)

    def stack(self, parts: Sequence[str]) -> str:
        """See ``Builder``."""
        return self.concat([self._node("Unsqueeze", [part, self._ints([0])]) for part in parts], 0)

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """See ``Builder``."""
        outputs = [self._name("Split") for _ in sizes]
        self._nodes.append(self._helper.make_node("Split", [x, self._ints(sizes)], outputs, axis=axis))
        return outputs

    def split_at(self, x: str, point: str, axis: int) -> tuple[str, str]:
        """See ``Builder``."""
        zero, end, axes = self._ints([0]), self._ints([np.iinfo(np.int64).max]), self._ints([axis])
        head = self._node("Slice", [x, zero, point, axes])
        return head, self._node("Slice", [x, point, end, axes])

    def length(self, x: str, axis: int) -> str:
        """See ``Builder``."""
        return self._node("Gather", [self._node("Shape", [x]), self._ints([axis])], axis=0)

    def count(self, length: str) -> str:
        """See ``Builder``."""
        stop = self._node("Squeeze", [length, self._ints([0])])
        return self._node("Range", [self.constant(np.int64(0)), stop, self.constant(np.int64(1))])

    # Arithmetic.

    def add(self, a: str, b: str) -> str:
        """See ``Builder``."""
        return self._node("Add", [a, b])

    def subtract(self, a: str, b: str) -> str:
        """See ``Builder``."""
        return self._node("Sub", [a, b])

    def multiply(self, a: str, b: str) -> str:
        """See ``Builder``."""
        return self._node("Mul", [a, b])

    def divide(self, a: str, b: str) -> str:
        """See ``Builder``."""
        return self._node("Div", [a, b])

    def maximum(self, a: str, b: str) -> str:
        """See ``Builder``."""
        return self._node("Max", [a, b])

    def sqrt(self, x: str) -> str:
        """See ``Builder``."""
        return self._node("Sqrt", [x])

    def sum(self, x: str, axis: int, keep: bool) -> str:
        """See ``Builder``."""
        return self._node("ReduceSum", [x, self._ints([axis])], keepdims=int(keep))

    def cos(self, x: str) -> str:
        """See ``Builder``."""
        return self._node("Cos", [x])

    def sin(self, x: str) -> str:
        """See ``Builder``."""
        return self._node("Sin", [x])

    def silu(self, x: str) -> str:
        """See ``Builder``."""
        return self.multiply(x, self._node("Sigmoid", [x]))

    def softmax(self, x: str) -> str:
        """See ``Builder``."""
        return self._node("Softmax", [x], axis=-1)

    def cast(self, x: str, dtype: str) -> str:
        """See ``Builder``."""
        return self._node("Cast", [x], to=onnx_type(dtype))

    def bias_where(self, allowed_low: str, allowed_high: str, strict: bool) -> str:
        """See ``Builder``."""
        allowed = self._node("Less" if strict else "LessOrEqual", [allowed_low, allowed_high])
        return self._node("Where", [allowed, self.constant(np.float32(0)), self.constant(MASKED)])

    def matmul(self, a: str, b: str, transpose_b: bool = False) -> str:
        """See ``Builder``. Runtimes take a transposition of the last two axes into the product."""
        return self._node("MatMul", [a, self.transpose(b, [0, 1, 3, 2]) if transpose_b else b])

    # Rows and routing.

    def gather_rows(self, x: str, rows: str) -> str:
        """See ``Builder``."""
        return self._node("Gather", [x, rows], axis=0)

    def top_k(self, x: str, k: int) -> str:
        """See ``Builder``."""
        outputs = [self._name("TopK"), self._name("TopK")]
        self._nodes.append(self._helper.make_node("TopK", [x, self._ints([k])], outputs, axis=-1))
        return outputs[1]

    def take(self, x: str, places: str) -> str:
        """See ``Builder``."""
        return self._node("GatherElements", [x, places], axis=1)

    def scatter(self, like: str, places: str, values: str) -> str:
        """See ``Builder``."""
        zeros = self.multiply(like, self.constant(np.float32(0)))
        return self._node("ScatterElements", [zeros, places, values], axis=1)

    # Grouping.

    def order(self, keys: str) -> str:
        """See ``Builder``. ``TopK`` of the negated keys: of equals it takes the lower place first."""
        outputs = [self._name("TopK"), self._name("TopK")]
        inputs = [self._node("Neg", [keys]), self.length(keys, 0)]
        self._nodes.append(self._helper.make_node("TopK", inputs, outputs, axis=0))
        return outputs[1]

    def by_group(self, x: str, keys: str, order: str, compute: Sequence[Callable[[str], str]]) -> str:
        """See ``Builder``. Products of no rows cost next to nothing in runtimes that allow them."""
        parts = [
            function(self._node("Slice", [x, start, end, self._ints([0])]))
            for function, (start, end) in zip(
                compute, pairwise(self._below(keys, len(compute) + 1)), strict=True
            )
        ]
        return self.gather_rows(self.concat(parts, 0), self.order(order))

    def _below(self, keys: str, limits: int) -> list[str]:
        """How many of int64 [n] lie below 0, 1, ... up to and without ``limits``: int64 [1] each."""
        columns = self.constant(np.arange(limits, dtype=np.int64).reshape(1, -1))
        less = self._node("Less", [self.reshape(keys, [-1, 1]), columns])
        return self.split(self.sum(self.cast(less, "int64"), 0, keep=False), [1] * limits, 0)

    # What these have in common.

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = self._name(kind)
        self._nodes.append(self._helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _rename(self, value: str, name: str) -> None:
        """Name an edge. An ``Identity`` would not do: OpenVINO removes it, and its output then has two names."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, found in enumerate(names):
                    if found == value:
                        names[i] = name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    def _ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def _store(self, stored: Stored) -> str:
        self.stored.setdefault(stored.name, stored)
        return stored.name


def import_onnx() -> Any:
    """Return the onnx package. Raises MissingExtraError where it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError.of("export", "writing ONNX") from error
    return onnx


def onnx_type(dtype: str) -> int:
    """ONNX's number of the NumPy dtype of that name."""
    onnx = import_onnx()
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def in_memory_model(builder: OnnxBuilder) -> bytes:
    """The model without its weights, which a runtime is given by name; serialised."""
    onnx = import_onnx()
    graph = builder.graph("ernie_accel step")
    for stored in builder.stored.values():
        tensor = onnx.TensorProto(
            name=stored.name,
            data_type=onnx_type(stored.dtype),
            dims=stored.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value="memory")
        graph.initializer.append(tensor)
    return bytes(make_model(builder, graph).SerializeToString())


def make_model(builder: OnnxBuilder, graph: Any) -> Any:
    """The ModelProto around a graph of the builder."""
    helper = import_onnx().helper
    return helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid(domain, OPSET if domain == "" else 1) for domain in builder.domains
        ],
        ir_version=IR_VERSION,
        producer_name="ernie_accel",
    )
