"""Writing a directory of packed weights, unit by unit, so that it can be interrupted and resumed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.packed.header import (
    DATA_START,
    FORMAT,
    WEIGHTS_NAME,
    MatrixEntry,
    PackedHeader,
    TensorEntry,
    encode_header,
    write_preamble,
)
from ernie_accel.checkpoint.packed.layout import ALIGNMENT, PackedMatrix
from ernie_accel.checkpoint.quantised import ActivationGroups
from ernie_accel.checkpoint.strict_json import check_regular_file
from ernie_accel.checkpoint.unfinished import (
    JOURNAL_NAME,
    DiskError,
    Journal,
    check_target,
    partial_path,
    sync_directory,
)
from ernie_accel.closing import Closing
from ernie_accel.errors import ArgumentError, CheckpointError

__all__ = ["PackedWriter"]


class PackedWriter(Closing):
    """Begins a directory of packed weights, or goes on with one that was interrupted.

    ``add`` each unit that is not in ``done``, then ``seal``, then ``publish``. Closing before keeps the finished units
    for the next time, unless there are none; a disk that refuses leaves nothing behind.

    Attributes:
        directory: Where it is written until it is published.
        done: Names of the units that are finished, by this run or an interrupted one.
        notes: What was noted with each of them.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        """Take the target's place; ``identity`` is all that the bytes depend on, as JSON has it.

        Raises:
            ArgumentError: The target exists and is not an empty directory, an interrupted run made something else, or
                another process is writing it.
            CheckpointError: The disk refuses.
        """
        self.target = target
        self.directory = partial_path(target)
        self._identity: dict[str, Any] = {"format": FORMAT, **identity}
        self._matrices: list[MatrixEntry] = []
        self._tensors: list[TensorEntry] = []
        self._end = DATA_START
        self._data: BinaryIO | None = None
        self._journal: Journal | None = None
        self._published = False
        self.done: set[str] = set()
        self.notes: dict[str, Mapping[str, Any]] = {}
        check_target(target)
        with self._writing():
            self._open()

    def _open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self.directory, self._identity)
        try:
            for line in self._journal.lines:
                self._resume(line)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._journal.path}: is damaged: remove {self.directory} and begin again"
            ) from error
        path = self.directory / WEIGHTS_NAME
        path.touch()
        self._data = path.open("r+b")
        if os.fstat(self._data.fileno()).st_size < self._end and self.done:
            raise CheckpointError(
                f"{path}: is shorter than {JOURNAL_NAME} beside it says: remove {self.directory}"
            )
        self._data.truncate(self._end)

    def _resume(self, line: Mapping[str, Any]) -> None:
        self._matrices += [MatrixEntry(**{**e, "exact": tuple(e["exact"])}) for e in line["matrices"]]
        self._tensors += [TensorEntry(**{**e, "shape": tuple(e["shape"])}) for e in line["tensors"]]
        self._end = line["end"]
        self.done.add(line["unit"])
        self.notes[line["unit"]] = line["note"]

    def add(
        self,
        unit: str,
        matrices: Iterable[PackedMatrix],
        tensors: Mapping[str, npt.NDArray[np.float32]],
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a unit; when this returns, it is on disk. ``note`` is kept with it for a run that goes on."""
        matrix_entries, tensor_entries = [], []
        with self._writing():
            for matrix in matrices:
                place = self._write(matrix.panels)
                matrix_entries.append(
                    MatrixEntry(matrix.name, matrix.precision, matrix.group, matrix.exact, *place)
                )
            for name, values in tensors.items():
                place = self._write(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8))
                tensor_entries.append(TensorEntry(name, values.shape, *place))
            data = self._opened()
            data.flush()
            os.fsync(data.fileno())
            assert self._journal is not None
            self._journal.note(
                {
                    "unit": unit,
                    "end": self._end,
                    "note": dict(note or {}),
                    "matrices": [entry._asdict() for entry in matrix_entries],
                    "tensors": [entry._asdict() for entry in tensor_entries],
                }
            )
        self._matrices += matrix_entries
        self._tensors += tensor_entries
        self.done.add(unit)
        self.notes[unit] = dict(note or {})

    def read_matrix(self, name: str) -> PackedMatrix:
        """Return a matrix that was written."""
        entry = next(entry for entry in self._matrices if entry.name == name)
        return PackedMatrix(name, entry.precision, entry.group, entry.exact, self._read(entry))

    def read_tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor that was written."""
        entry = next(entry for entry in self._tensors if entry.name == name)
        return self._read(entry).view("<f4").reshape(entry.shape)

    def _read(self, entry: MatrixEntry | TensorEntry) -> npt.NDArray[np.uint8]:
        with self._writing():
            data = self._opened()
            data.flush()
            data.seek(entry.offset)
            found = np.frombuffer(data.read(entry.bytes), np.uint8)
        if hashlib.sha256(found.data).hexdigest() != entry.sha256:
            raise CheckpointError(
                f"{self.directory}: {entry.name!r} is damaged: remove the directory and begin again"
            )
        return found

    def seal(
        self,
        *,
        precision: str,
        activations: ActivationGroups,
        recipe: str,
        source: str,
        files: Mapping[str, Path | bytes],
    ) -> None:
        """Write the header and the small files (copied from a path, or given); the directory can be opened then."""
        from importlib.metadata import version

        contents = {name: _content(item) for name, item in files.items()}
        with self._writing():
            digests = {name: self._small_file(name, data) for name, data in contents.items()}
            header = PackedHeader(
                library=version("ernie-accel"),
                source=source,
                precision=precision,
                activations=activations,
                recipe=recipe,
                matrices={entry.name: entry for entry in self._matrices},
                tensors={entry.name: entry for entry in self._tensors},
                files=digests,
            )
            text = encode_header(header)
            data = self._opened()
            data.truncate(self._end)
            data.seek(self._end)
            data.write(text)
            write_preamble(data, self._end, text)
            data.flush()
            os.fsync(data.fileno())

    def publish(self) -> None:
        """Give the directory its name."""
        with self._writing():
            # The journal is locked until the directory has its name: nobody else may go on with it.
            os.replace(self.directory, self.target)  # replaces an empty directory
            self._published = True
            (self.target / JOURNAL_NAME).unlink()
            self._close_files()
            sync_directory(self.target.parent)

    def close(self) -> None:
        """Keep what is finished for the next time; remove the directory if nothing is. May be called twice."""
        self._close_files()
        if not self._published and not self.done:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, data: npt.NDArray[np.uint8]) -> tuple[int, int, str]:
        """Append at the next aligned place; return offset, size and SHA-256."""
        file = self._opened()
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        file.seek(self._end)
        file.write(bytes(offset - self._end))
        file.write(data.data)
        self._end = offset + data.nbytes
        return offset, data.nbytes, hashlib.sha256(data.data).hexdigest()

    def _small_file(self, name: str, data: bytes) -> str:
        with (self.directory / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return hashlib.sha256(data).hexdigest()

    def _opened(self) -> BinaryIO:
        if self._data is None:
            raise CheckpointError(f"{self.target}: writing has ended")
        return self._data

    def _close_files(self) -> None:
        for file in (self._data, self._journal):
            if file is not None:
                with suppress(OSError):  # what could not be flushed is not in the journal
                    file.close()
        self._data = self._journal = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the disk says into an error of ours; free a disk that is full, keep what is finished otherwise."""
        try:
            yield
        except OSError as error:
            self._close_files()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                shutil.rmtree(self.directory, ignore_errors=True)
                self.done.clear()
            raise DiskError(f"{self.target}: cannot be written: {error.strerror or error}") from error
        except (ArgumentError, CheckpointError):
            self._close_files()
            raise


def _content(item: Path | bytes) -> bytes:
    """What a small file holds; an error names the file and not the directory that is written."""
    if isinstance(item, bytes):
        return item
    check_regular_file(item)
    try:
        return item.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{item}: cannot be read: {error.strerror or error}") from error
