"""Writes an ONNX model to a directory, weight by weight: no more than one lies in memory.

A protobuf message may be written in pieces, one after the other: a reader merges them, and lists grow. So a model that
fits one file is the graph, and then each weight as one more piece of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import CheckpointError
from ernie_accel.export.onnx import OnnxBuilder, Stored, import_onnx, make_model, onnx_type
from ernie_accel.export.onnx_precisions import make_builder
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import write_step
from ernie_accel.export.weights import StepWeights
from ernie_accel.types import Progress

__all__ = ["DATA_NAME", "MODEL_NAME", "write_graph", "write_onnx"]

MODEL_NAME, DATA_NAME = "model.onnx", "model.onnx.data"
ONE_FILE = (2 << 30) - (1 << 24)
"""Protobuf reads no more than 2 GiB; the graph itself takes a few MB of it."""

ALIGNMENT = 4096
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW = 7, 5, 9
"""Numbers of the fields ModelProto.graph, GraphProto.initializer, TensorProto.raw_data in onnx.proto."""


def write_graph(
    checkpoint: Checkpoint, signature: Signature, directory: Path, progress: Progress | None = None
) -> str:
    """Write the step of a model in the signature's precision; see ``ernie_accel.export.formats``."""
    builder = make_builder(signature.precision)
    write_step(builder, StepWeights(checkpoint, checkpoint.config), signature)
    return write_onnx(builder, directory, progress)


def write_onnx(
    builder: OnnxBuilder,
    directory: Path,
    progress: Progress | None = None,
    *,
    one_file: int = ONE_FILE,
    stage: str = "export",
) -> str:
    """Write ``model.onnx``, and ``model.onnx.data`` where more than ``one_file`` bytes would be in it.

    ``stage`` is what ``progress`` is told it is. Returns the name of the main file. Raises OSError where the disk
    refuses.
    """
    counted = _Counted(sum(stored.nbytes for stored in builder.stored.values()), progress, stage)
    if counted.total < one_file:
        _write_one(builder, directory / MODEL_NAME, counted)
    else:
        _write_two(builder, directory, counted)
    return MODEL_NAME


class _Counted:
    """Makes arrays, checks them and reports how far it is."""

    def __init__(self, total: int, progress: Progress | None, stage: str) -> None:
        self.total, self._done, self._progress, self._stage = total, 0, progress, stage

    def load(self, stored: Stored) -> npt.NDArray[Any]:
        values = np.ascontiguousarray(stored.load())
        if values.shape != stored.shape or values.dtype != np.dtype(stored.dtype):
            raise CheckpointError(
                f"{stored.name}: has shape {values.shape} and dtype {values.dtype}, expected {stored.shape}"
            )
        self._done += stored.nbytes
        if self._progress is not None:
            self._progress(self._stage, self._done, self.total)
        return values


def _write_one(builder: OnnxBuilder, path: Path, counted: _Counted) -> None:
    with path.open("wb") as file:
        file.write(make_model(builder, builder.graph("ernie_accel step")).SerializeToString())
        for stored in builder.stored.values():
            values = counted.load(stored)
            tensor = _tensor(stored).SerializeToString() + _tag(TENSOR_RAW, values.nbytes)
            initializer = _tag(GRAPH_INITIALIZER, len(tensor) + values.nbytes)
            file.write(_tag(MODEL_GRAPH, len(initializer) + len(tensor) + values.nbytes))
            file.write(initializer + tensor)
            _write_values(file, values)


def _write_two(builder: OnnxBuilder, directory: Path, counted: _Counted) -> None:
    graph = builder.graph("ernie_accel step")
    with (directory / DATA_NAME).open("wb") as file:
        for stored in builder.stored.values():
            file.write(bytes(-file.tell() % ALIGNMENT))
            tensor = _tensor(stored)
            tensor.data_location = import_onnx().TensorProto.EXTERNAL
            place = {"location": DATA_NAME, "offset": file.tell(), "length": stored.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            graph.initializer.append(tensor)
            _write_values(file, counted.load(stored))
    (directory / MODEL_NAME).write_bytes(make_model(builder, graph).SerializeToString())


def _tensor(stored: Stored) -> Any:
    return import_onnx().TensorProto(name=stored.name, dims=stored.shape, data_type=onnx_type(stored.dtype))


def _write_values(file: BinaryIO, values: npt.NDArray[Any]) -> None:
    file.write(values.reshape(-1).view(np.uint8).data)


def _tag(field: int, length: int) -> bytes:
    """The head of a length-delimited field: its number with wire type 2, and the length, both as varints."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
