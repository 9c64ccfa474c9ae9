"""The formats in which the step can be written: for each the module that writes it, and the backend that runs it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple, cast

from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.export.signature import Signature
from ernie_accel.types import Progress

__all__ = ["FORMATS", "Format", "write_graph"]


class Format(NamedTuple):
    """One format.

    Attributes:
        module: Has ``write_graph``, with the arguments of the function below but for ``format``.
        backend: Name of the backend that the written graph is checked with.
        precisions: In which it is written.
    """

    module: str
    backend: str
    precisions: tuple[str, ...]


FORMATS = {
    "onnx": Format("ernie_accel.export.onnx_file", "onnxruntime", ("fp32", "fp16", "int8")),
    "paddle": Format("ernie_accel.export.paddle_file", "paddle", ("fp32", "bf16")),
}


def write_graph(
    format: str, checkpoint: Checkpoint, signature: Signature, directory: Path, progress: Progress | None
) -> str:
    """Write the graph's files into a directory and return the name of the main one.

    Raises OSError where the disk refuses, and MissingExtraError where the format's own package is missing.
    """
    module = import_module(FORMATS[format].module)
    return cast(str, module.write_graph(checkpoint, signature, directory, progress))
