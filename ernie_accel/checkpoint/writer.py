"""Writing safetensors files: streamed, and visible under their name only when they are complete."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.base import Tensor
from ernie_accel.checkpoint.headers import DTYPE_BITS, MAX_HEADER
from ernie_accel.errors import ArgumentError, CheckpointError

__all__ = ["TensorSource", "encode_header", "in_order", "replace_file", "write_safetensors"]

_TAGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ITEMS: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_CHUNK = 1 << 24


class TensorSource(NamedTuple):
    """A tensor that is made when its turn to be written comes.

    ``dtype`` is the tag in the file: F32, F16, BF16 or U16 (both 16-bit patterns as uint16), U8, I8, I32, I64.
    ``produce`` returns an array of that shape, strided or not; it is called once.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    produce: Callable[[], npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Size in the file, bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor] | Iterable[TensorSource],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file; at most one tensor that a source makes is in memory at a time.

    Tensors lie by falling item size, then by name, so that each is aligned. A file of that name is replaced only once
    the new one is complete and on disk.

    Raises:
        ArgumentError: Two tensors have one name, a dtype cannot be written, or a source made another shape or dtype.
        CheckpointError: The file cannot be written (the disk is full, for example); nothing of it is left behind.
    """
    sources = in_order(_sources(tensors))
    header = encode_header([source[:3] for source in sources], metadata or {})

    def write(file: Any) -> None:
        file.write(header)
        for source in sources:
            _write_tensor(file, source)

    replace_file(Path(path), write)


def replace_file(path: Path, write: Callable[[Any], None]) -> None:
    """Call ``write`` with a new binary file that takes the name ``path`` when all of it is on disk.

    Raises CheckpointError where the disk refuses; the unfinished file is removed whatever goes wrong.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def _sources(tensors: Mapping[str, Tensor] | Iterable[TensorSource]) -> list[TensorSource]:
    if isinstance(tensors, Mapping):
        return [
            TensorSource(name, tensor.data.shape, _TAGS[tensor.dtype], lambda data=tensor.data: data)  # type: ignore[misc]
            for name, tensor in tensors.items()
        ]
    return list(tensors)


def in_order(sources: Sequence[TensorSource]) -> list[TensorSource]:
    """Return tensors in the order of a file. Raises ArgumentError as ``write_safetensors`` does."""
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"tensor {twice!r} is given twice: each name may be written once")
    if "__metadata__" in names:
        raise ArgumentError("tensor '__metadata__': the format keeps this name for itself; choose another")
    for source in sources:
        if source.dtype not in _ITEMS:
            raise ArgumentError(
                f"tensor {source.name!r}: dtype={source.dtype!r}: must be one of {', '.join(_ITEMS)}"
            )
    return sorted(sources, key=lambda source: (-DTYPE_BITS[source.dtype], source.name))


def encode_header(tensors: Sequence[tuple[str, tuple[int, ...], str]], metadata: Mapping[str, str]) -> bytes:
    """Return what a safetensors file begins with: its tensors by name, shape and dtype, in the order of their bytes."""
    values: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape, dtype in tensors:
        end = position + math.prod(shape) * DTYPE_BITS[dtype] // 8
        values[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    # the data begins at a multiple of 8, as the format asks for
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ArgumentError(
            f"{len(tensors)} tensors: their header has {len(text)} bytes, must be at most {MAX_HEADER}"
        )
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: Any, source: TensorSource) -> None:
    data = source.produce()
    if data.shape != tuple(source.shape) or data.dtype.itemsize != _ITEMS[source.dtype].itemsize:
        raise ArgumentError(
            f"tensor {source.name!r}: made {data.dtype} of shape {data.shape}, "
            f"must be {source.dtype} of shape {tuple(source.shape)}"
        )
    rows = data.reshape(1) if data.ndim == 0 else data
    step = max(1, _CHUNK // max(1, rows[:1].nbytes))
    # a strided view becomes contiguous one slice at a time
    for start in range(0, rows.shape[0], step):
        piece = np.ascontiguousarray(rows[start : start + step], dtype=rows.dtype.newbyteorder("<"))
        file.write(piece.reshape(-1).view(np.uint8).data)
