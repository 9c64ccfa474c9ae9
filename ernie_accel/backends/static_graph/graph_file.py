"""Writes the step as one ONNX file, weight by weight, for a runtime that reads files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import UnsupportedError
from ernie_accel.export.onnx import OnnxBuilder, _model, _onnx_type, import_onnx
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import write_step
from ernie_accel.export.weights import StepWeights
from ernie_accel.types import Progress

__all__ = ["write_graph"]

LIMIT = (1 << 31) - (1 << 20)
"""Bytes that a message of protobuf can hold, less some for everything that is no weight."""

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW = 7, 5, 9
"""Numbers of fields in ``onnx.proto``."""


def write_graph(
    path: Path,
    checkpoint: Checkpoint,
    signature: Signature,
    *,
    builder: OnnxBuilder,
    progress: Progress | None,
) -> None:
    """Write the step with that builder.

    A message that holds a field twice means the two joined: so each weight follows as a graph of its own that has
    nothing else, and no more than one lies in memory.

    Raises UnsupportedError for a model beyond what protobuf holds.
    """
    write_step(builder, StepWeights(checkpoint, checkpoint.config), signature)
    total = sum(stored.nbytes for stored in builder.stored.values())
    if total > LIMIT:
        raise UnsupportedError(
            f"the weights take {total:,} bytes and FastDeploy 1.x reads one ONNX file, which holds {LIMIT:,}; choose a "
            "smaller precision, or backend 'native'"
        )
    with path.open("wb") as file:
        file.write(_model(builder.graph("step")).SerializeToString())
        done = 0
        for name, stored in builder.stored.items():
            for piece in _initializer(name, stored.load()):
                file.write(piece)
            done += stored.nbytes
            if progress is not None:
                progress("load", done, total)


def _initializer(name: str, values: np.ndarray[Any, Any]) -> Iterator[bytes | memoryview]:
    tensor = import_onnx().TensorProto(name=name, data_type=_onnx_type(str(values.dtype)), dims=values.shape)
    head = tensor.SerializeToString() + _field(TENSOR_RAW, values.nbytes)
    initializer = _field(GRAPH_INITIALIZER, len(head) + values.nbytes)
    yield _field(MODEL_GRAPH, len(initializer) + len(head) + values.nbytes) + initializer + head
    yield memoryview(np.ascontiguousarray(values)).cast("B")


def _field(number: int, length: int) -> bytes:
    """The bytes before a field of so many bytes."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
