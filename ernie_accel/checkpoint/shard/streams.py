"""Bytes of one tensor on their way: from the source to the ranks, and from the ranks back.

Both see a tensor as rows of bytes and hold some rows of it at a time; every byte that passes is hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.shard.blueprint import Held, Slices, Stored
from ernie_accel.checkpoint.shard.source import CHUNK, reading
from ernie_accel.errors import CheckpointError

__all__ = ["PieceReader", "PieceWriter", "check_file", "damaged", "gather", "scatter"]

Rows = npt.NDArray[np.uint8]


def damaged(path: Path, name: str) -> CheckpointError:
    """Build the error for a tensor that is not what was written."""
    return CheckpointError(f"{path}: tensor {name!r} is damaged: its SHA-256 is not the one recorded")


class PieceWriter:
    """Appends one rank's part of a tensor to its file."""

    def __init__(self, file: BinaryIO, held: Held) -> None:
        self._file, self._held = file, held
        self._digest = hashlib.sha256()

    def take(self, rows: Rows, first: int) -> None:
        """Write what the rank holds of rows that begin with row ``first`` of the tensor."""
        for part in _cut(rows, first, self._held.slices, self._held.tensor.item):
            self._write(part)

    def finish(self) -> str:
        """Write padding, and return the SHA-256 of the part."""
        if self._held.slices.axis == 0 and self._held.slices.padding:
            self._write(np.zeros((self._held.slices.padding, self._held.tensor.row), np.uint8))
        return self._digest.hexdigest()

    def _write(self, part: Rows) -> None:
        self._file.write(part.data)
        self._digest.update(part.data)


def _cut(rows: Rows, first: int, slices: Slices, item: int) -> Iterator[Rows]:
    if slices.axis is None:
        yield rows
    elif slices.axis == 0:
        for start, stop in slices.ranges:
            low, high = max(start - first, 0), min(stop - first, len(rows))
            if low < high:
                yield rows[low:high]
    else:
        parts = [rows[:, start * item : stop * item] for start, stop in slices.ranges]
        parts.append(np.zeros((len(rows), slices.padding * item), np.uint8))
        yield np.concatenate(parts, axis=1)


def scatter(
    pieces: Iterator[Rows], writers: Sequence[PieceWriter | None], advance: Callable[[int], None]
) -> tuple[str, list[str | None]]:
    """Pass a tensor on to the ranks; return its SHA-256 and those of their parts. ``advance`` is told bytes."""
    digest, first = hashlib.sha256(), 0
    for rows in pieces:
        digest.update(rows.data)
        for writer in writers:
            if writer is not None:
                writer.take(rows, first)
        first += len(rows)
        advance(rows.nbytes)
    return digest.hexdigest(), [writer.finish() if writer else None for writer in writers]


class PieceReader:
    """Reads one rank's part of a tensor in order."""

    def __init__(self, path: Path, file: BinaryIO, held: Held, digest: str) -> None:
        self.slices, self._held = held.slices, held
        self._path, self._file, self._expected = path, file, digest
        self._digest = hashlib.sha256()
        file.seek(held.offset)

    def read(self, rows: int) -> Rows:
        """Return the next rows of the part, as wide as it is."""
        tensor, slices = self._held.tensor, self._held.slices
        width = slices.length * tensor.item if slices.axis == 1 else tensor.row
        with reading(self._path):
            data = self._file.read(rows * width)
        if len(data) != rows * width:
            raise damaged(self._path, tensor.name)
        self._digest.update(data)
        return np.frombuffer(data, np.uint8).reshape(rows, width)

    def finish(self) -> None:
        """Read the padding, and raise CheckpointError unless the part is what was written."""
        slices = self._held.slices
        padding = self.read(slices.padding) if slices.axis == 0 else np.zeros(0, np.uint8)
        if self._digest.hexdigest() != self._expected or padding.any():
            raise damaged(self._path, self._held.tensor.name)


class _Run(NamedTuple):
    """Rows ``start:stop`` of a tensor and the ranks that have them."""

    start: int
    stop: int
    ranks: list[PieceReader]


def gather(tensor: Stored, readers: Sequence[PieceReader]) -> Iterator[Rows]:
    """Give the rows of a tensor in order, from the ranks that have parts of it.

    Raises:
        CheckpointError: A part is not what was written, or copies of one differ.
    """
    alike = True
    for rows, same in _columns(tensor, readers) if readers[0].slices.axis == 1 else _rows(tensor, readers):
        alike = alike and same
        yield rows
    for reader in readers:
        reader.finish()
    if not alike:
        raise CheckpointError(f"tensor {tensor.name!r}: ranks that hold copies of it hold different ones")


def _rows(tensor: Stored, readers: Sequence[PieceReader]) -> Iterator[tuple[Rows, bool]]:
    runs: dict[tuple[int, int], _Run] = {}
    for reader in readers:
        for start, stop in reader.slices.ranges or ((0, tensor.nbytes // tensor.row),):
            runs.setdefault((start, stop), _Run(start, stop, [])).ranks.append(reader)
    step = max(1, CHUNK // tensor.row)
    for _, run in sorted(runs.items()):
        for first in range(run.start, run.stop, step):
            count = min(step, run.stop - first)
            copies = [reader.read(count) for reader in run.ranks]
            yield copies[0], all(np.array_equal(copies[0], copy) for copy in copies[1:])


def _columns(tensor: Stored, readers: Sequence[PieceReader]) -> Iterator[tuple[Rows, bool]]:
    rows, step = tensor.shape[0], max(1, CHUNK // tensor.row)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        whole, same = np.empty((count, tensor.row), np.uint8), True
        filled: set[tuple[int, int]] = set()
        for reader in readers:
            part, place = reader.read(count), 0
            for start, stop in reader.slices.ranges:
                width = (stop - start) * tensor.item
                columns = whole[:, start * tensor.item : stop * tensor.item]
                if (start, stop) in filled:
                    same = same and np.array_equal(columns, part[:, place : place + width])
                columns[:] = part[:, place : place + width]
                filled.add((start, stop))
                place += width
            same = same and not part[:, place:].any()
        yield whole, same


def check_file(
    path: Path, start: bytes, tensors: Sequence[tuple[str, int, str]], advance: Callable[[int], None]
) -> None:
    """Compare a file with what it must begin with and its tensors (name, bytes, SHA-256) in order.

    Raises:
        CheckpointError: Anything differs, or it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        if file.read(len(start)) != start:
            raise CheckpointError(f"{path}: its header is not the one that was written")
        for name, nbytes, expected in tensors:
            digest, left = hashlib.sha256(), nbytes
            while left and (data := file.read(min(left, CHUNK))):
                digest.update(data)
                left -= len(data)
                advance(len(data))
            if left or digest.hexdigest() != expected:
                raise damaged(path, name)
        if file.read(1):
            raise CheckpointError(f"{path}: is longer than what was written")
