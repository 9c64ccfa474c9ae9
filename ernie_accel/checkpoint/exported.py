"""A directory that ``ernie-accel export`` wrote: a graph for another engine, with the model's small files beside it.

``export.json`` says which format, which precision, the files with their sizes, and the graph's signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.checkpoint.strict_json import read_object
from ernie_accel.closing import Closing
from ernie_accel.errors import CheckpointError, UnsupportedError
from ernie_accel.types import ModelInfo

__all__ = ["EXPORT_NAME", "ExportedCheckpoint"]

EXPORT_NAME = "export.json"
_BACKENDS = {"onnx": "onnxruntime", "paddle": "paddle"}
"""What runs a format; for advice."""
_LIMIT = 1 << 20
_STRINGS = ("format", "precision", "main", "producer")


class ExportedCheckpoint(Closing):
    """Implements ``ernie_accel.checkpoint.base.Checkpoint``, but for tensors, which only the graph has.

    Attributes:
        directory: Where graph and tokenizer files lie.
        format: ``"onnx"`` or ``"paddle"``.
        precision: Of the weights in the graph; it can be run in no other.
        signature: The graph's own description, as ``ernie_accel.export.signature`` wrote it.
    """

    def __init__(self, directory: Path, config: ModelConfig, generation_config: Mapping[str, Any]) -> None:
        """Read ``export.json`` and compare the files' sizes. Raises CheckpointError."""
        self.directory = directory
        self.config = config
        self.generation_config = generation_config
        path = directory / EXPORT_NAME
        values = read_object(path, _LIMIT)
        wrong = [name for name in _STRINGS if not isinstance(values.get(name), str)]
        wrong += [name for name in ("signature", "files") if not isinstance(values.get(name), dict)]
        if wrong:
            raise CheckpointError(f"{path}: {wrong[0]} is missing or damaged; export the model again")
        self.format, self.precision = values["format"], values["precision"]
        self.signature: dict[str, Any] = values["signature"]
        self._main: str = values["main"]
        _check_files(directory, values["files"])
        self.info = ModelInfo(
            name=directory.resolve().name,
            architecture=config.model_type,
            layout=self.format,
            parameters={},
            bytes={"graph": sum(values["files"].values())},
            dtypes={},
            files=tuple(values["files"]),
        )

    def graph_path(self, format: str) -> Path:
        """The graph's main file. Raises UnsupportedError if the directory holds another format."""
        if format != self.format:
            raise UnsupportedError(
                f"{self.directory}: holds a graph in the format {self.format}, and this backend runs {format}; "
                f"use backend={_BACKENDS.get(self.format, 'of that format')!r}, or export the checkpoint with "
                f"--format {format}"
            )
        return self.directory / self._main

    def tensor(self, name: str) -> Tensor:
        """Raise CheckpointError: weights lie inside the graph."""
        raise CheckpointError(
            f"{self.directory}: holds a graph in the format {self.format} and no tensors; load it with "
            f"backend={_BACKENDS.get(self.format, 'of that format')!r}, or load the checkpoint that it was made of"
        )

    def close(self) -> None:
        """Nothing is open."""


def _check_files(directory: Path, files: Mapping[str, Any]) -> None:
    for name, size in files.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(
                f"{directory}: {EXPORT_NAME} names {name!r}, which is not there; export again"
            )
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path}: has {path.stat().st_size} bytes, {EXPORT_NAME} says {size}; export the model again"
            )
