"""Comparing the contents of a directory of packed weights with the hashes that were recorded when it was written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ernie_accel.checkpoint.packed.header import (
    DATA_START,
    MatrixEntry,
    PackedHeader,
    TensorEntry,
    check_preamble,
)
from ernie_accel.checkpoint.strict_json import check_regular_file
from ernie_accel.errors import CheckpointError
from ernie_accel.types import Progress

__all__ = ["verify"]

_CHUNK = 1 << 22


def verify(path: Path, header: PackedHeader, progress: Progress | None = None) -> int:
    """Read the whole file of weights and the small files beside it; return the number of bytes that were compared.

    Raises CheckpointError naming the first file or entry that is not what was written.
    """
    try:
        done = _check_weights(path, header, progress)
        return done + sum(_check_file(path.parent / name, digest) for name, digest in header.files.items())
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path}: cannot be read: {error.strerror or error}"
        ) from error


def _check_weights(path: Path, header: PackedHeader, progress: Progress | None) -> int:
    """Compare the file up to its end: the header, which was compared when it was read, ends it."""
    total, place = os.path.getsize(path), DATA_START
    with path.open("rb") as file:
        start = check_preamble(path, file)
        for entry in header.entries:
            _check_padding(path, file, place, entry.offset, f"before {entry.name!r}")
            _check_entry(path, file, entry)
            place = entry.offset + entry.bytes
            if progress is not None:
                progress("verify", place, total)
        _check_padding(path, file, place, start, "before the header")
    return total


def _check_padding(path: Path, file: BinaryIO, start: int, end: int, where: str) -> None:
    file.seek(start)
    if any(file.read(end - start)):
        raise CheckpointError(f"{path}: bytes {where} are not zero as they were written")


def _check_file(path: Path, digest: str) -> int:
    """Compare a small file; return its size."""
    check_regular_file(path)
    found, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            found.update(piece)
            done += len(piece)
    if found.hexdigest() != digest:
        raise CheckpointError(f"{path}: differs from what was written with the weights")
    return done


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
