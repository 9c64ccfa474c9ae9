"""Writes the decoder step as Paddle's inference model: the program ``model.json`` and the weights ``model.pdiparams``.

The weights are written one after the other in Paddle's own stream of tensors, ordered by name: no more than one lies
in memory, where ``paddle.static.save_inference_model`` would have all of them in a scope first.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import CheckpointError
from ernie_accel.export.paddle import PaddleBuilder, Stored
from ernie_accel.export.paddle_package import import_paddle
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import Fusions, write_step
from ernie_accel.export.weights import StepWeights
from ernie_accel.types import Progress

__all__ = ["PARAMETERS_NAME", "PROGRAM_NAME", "write_graph"]

PROGRAM_NAME, PARAMETERS_NAME = "model.json", "model.pdiparams"
FLOAT32 = 5
"""``VarType.FP32`` of Paddle's framework.proto."""

_static_mode = threading.Lock()


def write_graph(
    checkpoint: Checkpoint,
    signature: Signature,
    directory: Path,
    progress: Progress | None,
    *,
    device: str = "cpu",
    fusions: Fusions | None = None,
    stage: str = "export",
    ranks: int = 1,
) -> str:
    """Write the model to a directory that exists; return the name of the main file.

    While the program is made, about a second, Paddle is in static mode for the whole process: other threads should not
    compute with its dynamic mode then.

    Args:
        checkpoint: Gives the tensors, one by one.
        signature: Of the graph; ``precision`` bf16 marks the products for oneDNN, the stored weights stay float32.
        directory: Gets two files.
        progress: Told the bytes written so far, of how many.
        device: ``"cpu"`` or ``"gpu"``, where the program is to run.
        fusions: What is done at once; None is everything.
        stage: What ``progress`` is told it is.
        ranks: How many compute the model together; ``checkpoint`` then is the part of one.

    Raises:
        MissingExtraError: Paddle is not installed.
        CheckpointError: A tensor has another shape than the configuration says.
        OSError: The disk refuses.
    """
    paddle = import_paddle()
    weights = StepWeights(checkpoint, checkpoint.config)
    builder = PaddleBuilder(paddle, signature.precision, device, ranks)
    with _static_program(paddle) as program:
        write_step(builder, weights, signature, fusions=fusions)
        normal = paddle.static.normalize_program(program, builder.inputs, builder.outputs)
        paddle.save(normal, str(directory / PROGRAM_NAME))
    _write_parameters(directory / PARAMETERS_NAME, builder.stored, progress, stage)
    return PROGRAM_NAME


@contextmanager
def _static_program(paddle: Any) -> Iterator[Any]:
    """An empty program that operations are added to; afterwards Paddle is in the mode that it was in."""
    with _static_mode:
        dynamic = paddle.in_dynamic_mode()
        paddle.enable_static()
        try:
            program = paddle.static.Program()
            with paddle.static.program_guard(program, paddle.static.Program()):
                yield program
        finally:
            if dynamic:
                paddle.disable_static()


def _write_parameters(
    path: Path, stored: Mapping[str, Stored], progress: Progress | None, stage: str
) -> None:
    done, total = 0, sum(parameter.nbytes for parameter in stored.values())
    with path.open("wb") as file:
        for name in sorted(stored):
            parameter = stored[name]
            values = np.ascontiguousarray(parameter.load(), np.float32)
            if values.shape != parameter.shape:
                raise CheckpointError(f"{name}: has shape {values.shape}, expected {parameter.shape}")
            file.write(_tensor_header(values.shape))
            file.write(values.reshape(-1).view(np.uint8).data)
            done += parameter.nbytes
            if progress is not None:
                progress(stage, done, total)


def _tensor_header(shape: tuple[int, ...]) -> bytes:
    """What precedes a dense float32 tensor in Paddle's stream: versions, no levels, and a TensorDesc message.

    The message has the fields data_type = 1 and dims = 2, which is repeated.
    """
    description = bytes([1 << 3, FLOAT32]) + b"".join(bytes([2 << 3]) + _varint(length) for length in shape)
    return struct.pack("<IQIi", 0, 0, 0, len(description)) + description


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
