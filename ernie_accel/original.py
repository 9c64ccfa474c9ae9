"""Arguments of what makes a directory out of a checkpoint: the checkpoint itself, and where the directory will be."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.exported import ExportedCheckpoint
from ernie_accel.checkpoint.packed import PackedCheckpoint
from ernie_accel.checkpoint.unfinished import check_target
from ernie_accel.errors import ArgumentError, UnsupportedCheckpointError
from ernie_accel.hub import resolve
from ernie_accel.types import Progress

__all__ = ["new_directory", "open_original"]


def new_directory(target: str | os.PathLike[str]) -> Path:
    """Return the path of a directory to create. Raises ArgumentError if it is none, or exists and is not empty."""
    if not isinstance(target, (str, os.PathLike)):
        raise ArgumentError(f"target={target!r}: must be the path of a directory to create")
    path = Path(target)
    check_target(path)
    return path


def open_original(
    source: str | os.PathLike[str] | Checkpoint, verb: str, progress: Progress | None, stack: ExitStack
) -> Checkpoint:
    """Open a path or hub id; a checkpoint is returned as it is, and its owner closes it.

    Args:
        source: What to open.
        verb: What will be done with it, for messages: ``"quantize"``.
        progress: Is told of downloads.
        stack: Closes what was opened.

    Raises:
        ArgumentError: The source is nothing of that.
        UnsupportedCheckpointError: It was made of another checkpoint: quantised, or a graph.
    """
    if not isinstance(source, (str, os.PathLike)):
        if not all(hasattr(source, name) for name in ("config", "info", "tensor")):
            raise ArgumentError(f"source={source!r}: must be a path, a hub id, or a checkpoint")
        return source
    checkpoint = open_checkpoint(resolve(source, progress=progress or (lambda stage, done, total: None)))
    stack.callback(checkpoint.close)
    if isinstance(checkpoint, (PackedCheckpoint, ExportedCheckpoint)):
        packed = isinstance(checkpoint, PackedCheckpoint)
        what = f"quantized to {checkpoint.precision} already" if packed else "a graph already"
        raise UnsupportedCheckpointError(
            f"{checkpoint.directory}: is {what}; {verb} the checkpoint that it was made of"
        )
    return checkpoint
