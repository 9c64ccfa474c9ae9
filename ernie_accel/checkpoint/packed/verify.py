"""Comparing the contents of a directory of packed weights with the hashes that were recorded when it was written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ernie_accel.checkpoint.packed.header import DATA_START, MatrixEntry, PackedHeader, TensorEntry
from ernie_accel.errors import CheckpointError
from ernie_accel.types import Progress

__all__ = ["verify"]

_CHUNK = 1 << 22


def verify(path: Path, header: PackedHeader, progress: Progress | None = None) -> int:
    """Read the whole file of weights and the small files beside it; return the number of bytes that were compared.

    Raises CheckpointError naming the first file or entry that is not what was written.
    """
    total = os.path.getsize(path)
    done = DATA_START
    try:
        with path.open("rb") as file:
            for entry in header.entries:
                _check_padding(path, file, done, entry)
                _check_entry(path, file, entry)
                done = entry.offset + entry.bytes
                if progress is not None:
                    progress("verify", done, total)
        for name, digest in header.files.items():
            data = (path.parent / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise CheckpointError(f"{path.parent / name}: differs from what was written with the weights")
            done += len(data)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path}: cannot be read: {error.strerror or error}"
        ) from error
    return done


def _check_padding(path: Path, file: BinaryIO, start: int, entry: MatrixEntry | TensorEntry) -> None:
    file.seek(start)
    if any(file.read(entry.offset - start)):
        raise CheckpointError(f"{path}: bytes before {entry.name!r} are not zero as they were written")


def _check_entry(path: Path, file: BinaryIO, entry: MatrixEntry | TensorEntry) -> None:
    digest = hashlib.sha256()
    left = entry.bytes
    while left:
        piece = file.read(min(left, _CHUNK))
        if not piece:
            raise CheckpointError(f"{path}: {entry.name!r}: the file ends within it")
        digest.update(piece)
        left -= len(piece)
    if digest.hexdigest() != entry.sha256:
        raise CheckpointError(f"{path}: {entry.name!r} is damaged: its SHA-256 is not the one recorded")
