"""Naming what a quantization depends on, so that only equal ones are taken for equal."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ernie_accel.architecture import multi_token_specs, tensor_specs
from ernie_accel.checkpoint.base import Checkpoint, has_multi_token
from ernie_accel.errors import CheckpointError

__all__ = ["content", "digest", "stamp"]

_SMALL = ("config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
_CHUNK = 1 << 22
_SETTLED = 3.0
"""Seconds after which a file's times tell a later change; a change within one tick of the clock would not show."""


def digest(values: Any) -> str:
    """SHA-256 of plain values in hex. Raises TypeError on what JSON cannot hold: its text may leave something out."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def stamp(checkpoint: Checkpoint) -> str:
    """Name the checkpoint by sizes and times of its files: enough to tell whether an interrupted run can go on.

    A virtual checkpoint that does not say what it is goes by all of its tensors.
    """
    if checkpoint.directory is None:
        return _virtual(checkpoint) or _tensors(checkpoint)
    return digest([[path.name, *_status(path)[:2]] for path in _files(checkpoint, checkpoint.directory)])


def content(checkpoint: Checkpoint, memory: Path) -> str | None:
    """Name the checkpoint by all bytes of its weights, configuration and tokenizer.

    Reading them takes half a second for a gigabyte; ``memory`` is a directory that remembers the hashes of files whose
    size, times and inode have not changed since. It may be missing or unwritable.

    None for a virtual checkpoint that does not say what it is: one cannot know what its tensors will be next time.
    """
    if checkpoint.directory is None:
        return _virtual(checkpoint)
    return digest([[path.name, _hash(path, memory)] for path in _files(checkpoint, checkpoint.directory)])


def _virtual(checkpoint: Checkpoint) -> str | None:
    """What the checkpoint says it is, if it does in plain values; equal words of another class mean something else."""
    identity = getattr(checkpoint, "identity", None)
    if identity is None:
        return None
    kind = type(checkpoint)
    try:
        return digest(["virtual", kind.__module__, kind.__qualname__, identity])
    except (TypeError, ValueError):
        return None


def _tensors(checkpoint: Checkpoint) -> str:
    """SHA-256 of the configuration and every tensor: about a second for a gigabyte."""
    hasher = hashlib.sha256(digest(checkpoint.config.to_dict()).encode())
    more = multi_token_specs(checkpoint.config) if has_multi_token(checkpoint) else {}
    for name in sorted([*tensor_specs(checkpoint.config), *more]):
        tensor = checkpoint.tensor(name)
        data = np.ascontiguousarray(tensor.data)
        hasher.update(digest([name, tensor.dtype, list(data.shape)]).encode())
        hasher.update(data.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def _files(checkpoint: Checkpoint, directory: Path) -> Iterator[Path]:
    yield from (directory / name for name in checkpoint.info.files)
    yield from (directory / name for name in _SMALL if (directory / name).exists())


def _status(path: Path) -> Sequence[int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino


def _hash(path: Path, memory: Path) -> str:
    status = _status(path)
    note = memory / digest([str(path.resolve()), *status])
    try:
        known = note.read_text("ascii")
    except (OSError, ValueError):
        known = ""
    if len(known) == 64:
        return known
    found = _hash_file(path)
    if time.time() - max(status[1], status[2]) / 1e9 > _SETTLED and _status(path) == status:
        _remember(note, found)
    return found


def _hash_file(path: Path) -> str:
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                hasher.update(piece)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return hasher.hexdigest()


def _remember(note: Path, found: str) -> None:
    partial = note.with_suffix(f".{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(found, "ascii")
        os.replace(partial, note)
    except OSError:
        with suppress(OSError):
            partial.unlink()
