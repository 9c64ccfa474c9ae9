"""What is divided: stored tensors as they lie in files, read a piece at a time.

A directory is read with plain reads: mapped pages would count as memory of the process until somebody else needs it.
A virtual checkpoint is taken as the one file that writing it would make.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.files import INDEX_NAME, SINGLE_NAME, find_weights
from ernie_accel.checkpoint.headers import Header, parse_header, read_header
from ernie_accel.checkpoint.packed import WEIGHTS_NAME
from ernie_accel.checkpoint.reader import read_settings
from ernie_accel.checkpoint.save import stored_tensors
from ernie_accel.checkpoint.small_files import paths_of_small_files, small_files
from ernie_accel.checkpoint.strict_json import read_bytes
from ernie_accel.checkpoint.writer import TensorSource, encode_header, in_order
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError

__all__ = ["CHUNK", "SourceFile", "VirtualSource", "WeightsSource", "reading", "source_file"]

CHUNK = 1 << 24
"""Bytes that are read at a time."""

_INDEX_LIMIT = 128 << 20
_SMALL_LIMIT = 1 << 30


class SourceFile(NamedTuple):
    """A weight file by its name and the bytes that it begins with: length and JSON of its header."""

    name: str
    text: bytes
    header: Header


def source_file(name: str, text: bytes, source: str) -> SourceFile:
    """Check the beginning of a file, whose length is what its header says. Raises CheckpointError."""
    if len(text) < 8 or len(text) != 8 + int.from_bytes(text[:8], "little"):
        raise CheckpointError(f"{source}: header of {name} is not as long as it says")
    header = parse_header(text[8:], _end_of(text), f"{source}: {name}")
    return SourceFile(name, text, header)


def _end_of(text: bytes) -> int:
    """Where the data ends by the header; it is checked afterwards, so anything that is odd may be taken for 0."""
    try:
        values = json.loads(text[8:])
        ends = [item["data_offsets"][1] for name, item in values.items() if name != "__metadata__"]
        return len(text) + max([0, *(end for end in ends if isinstance(end, int))])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return len(text)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that is read into an error of ours."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


class WeightsSource:
    """A checkpoint directory.

    Attributes:
        name: What it is called in messages.
        config: Its configuration.
        files: Its weight files.
        index: What its index holds, None where it has none.
        small_files: Configuration and tokenizer files.
        identity: Tells whether it is still the same.
    """

    def __init__(self, path: Path) -> None:
        directory, self.config, _ = read_settings(path)
        if (directory / WEIGHTS_NAME).exists():
            raise UnsupportedCheckpointError(
                f"{directory}: is quantized; split the checkpoint that it was made of"
            )
        weights = find_weights(directory)
        self.name = directory.resolve().name
        self._paths = {item.name: item for item in weights.paths}
        self.files = [_read_start(item) for item in weights.paths]
        index = directory / INDEX_NAME
        self.index = read_bytes(index, _INDEX_LIMIT) if index.exists() else None
        self.small_files: Mapping[str, bytes] = {
            name: read_bytes(file, _SMALL_LIMIT) for name, file in paths_of_small_files(directory).items()
        }
        self.identity = _digest_of(
            [[item.name, item.stat().st_size, item.stat().st_mtime_ns] for item in weights.paths],
            self.small_files,
        )

    def read(self, file: SourceFile, name: str, row: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Give the bytes of a tensor in order, as arrays [rows, row] of some rows of so many bytes each."""
        path, entry = self._paths[file.name], file.header.tensors[name]
        step = max(1, CHUNK // row) * row
        with reading(path):
            stream = path.open("rb")
        with stream:
            stream.seek(entry.start)
            for left in range(entry.end - entry.start, 0, -step):
                with reading(path):
                    piece = stream.read(min(step, left))
                if len(piece) != min(step, left):
                    raise CheckpointError(f"{path}: tensor {name!r}: the file ends within it")
                yield np.frombuffer(piece, np.uint8).reshape(-1, row)


class VirtualSource:
    """A checkpoint that makes its tensors; see ``WeightsSource`` for the attributes."""

    index = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name = checkpoint.info.name
        self.config: ModelConfig = checkpoint.config
        dtype_of = getattr(checkpoint, "stored_dtype", None) or (lambda name: checkpoint.tensor(name).dtype)
        ordered = in_order(stored_tensors(checkpoint, "pt", "BF16", dtype_of))
        self._sources: Mapping[str, TensorSource] = {item.name: item for item in ordered}
        text = encode_header([item[:3] for item in ordered], {"format": "pt"})
        self.files = [source_file(SINGLE_NAME, text, self.name)]
        self.small_files: Mapping[str, bytes] = {
            name: item for name, item in small_files(checkpoint).items() if isinstance(item, bytes)
        }
        # one that does not say what it is may give other values next time: a run on it is not gone on with
        identity = getattr(checkpoint, "identity", None) or uuid.uuid4().hex
        self.identity = _digest_of([type(checkpoint).__qualname__, repr(identity)], self.small_files)

    def read(self, file: SourceFile, name: str, row: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Give the bytes of a tensor in order, as arrays [rows, row] of some rows of so many bytes each."""
        data = self._sources[name].produce()
        rows = data.reshape(1) if data.ndim == 0 else data
        step = max(1, CHUNK // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            piece = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
            yield piece.reshape(-1).view(np.uint8).reshape(-1, row)


def _read_start(path: Path) -> SourceFile:
    header = read_header(path)
    with path.open("rb") as stream:
        start = stream.read(8)
        return SourceFile(path.name, start + stream.read(int.from_bytes(start, "little")), header)


def _digest_of(values: Any, files: Mapping[str, bytes]) -> str:
    known = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return hashlib.sha256(json.dumps([values, known], sort_keys=True).encode()).hexdigest()
