"""Reads the GGUF files that trained checkpoints come in: metadata, and tensors as float32.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Blocks of 32 weights:

    Q4_0   fp16 d; 16 bytes        w = d * (nibble - 8)
    Q4_1   fp16 d, fp16 m; 16 bytes  w = d * nibble + m
    Q8_0   fp16 d; 32 int8         w = d * code

The low nibbles of the 16 bytes are the first half of a block, the high nibbles the second.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCK = 32
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies; the shape has the innermost dimension last."""

    shape: tuple[int, ...]
    kind: str
    offset: int


class Gguf:
    """An open file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        magic, version, tensors, keys = self._read("4sIQQ")
        if magic != MAGIC or version != 3:
            raise SystemExit(f"error: {path} is no GGUF file of version 3")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self._string()
            self.metadata[name] = self._value(self._read("I")[0])
        self.tensors = dict(self._entry() for _ in range(tensors))
        alignment = self.metadata.get("general.alignment", 32)
        self._data = -(-self._at // alignment) * alignment

    def tensor(self, name: str) -> Float32:
        """Values of a tensor as float32."""
        entry = self.tensors[name]
        count = int(np.prod(entry.shape))
        start = self._data + entry.offset
        if entry.kind == "F32":
            return np.frombuffer(self._map, np.float32, count, start).reshape(entry.shape)
        if entry.kind == "F16":
            return np.frombuffer(self._map, np.float16, count, start).reshape(entry.shape).astype(np.float32)
        size = BLOCK_BYTES[entry.kind]
        blocks = np.frombuffer(self._map, np.uint8, count // BLOCK * size, start).reshape(-1, size)
        return dequantise(blocks, entry.kind).reshape(entry.shape)

    def _read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._map, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def _string(self) -> str:
        (size,) = self._read("Q")
        self._at += size
        return self._map[self._at - size : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._read("IQ")
            return [self._value(inner) for _ in range(count)]
        return self._read(SCALARS[kind])[0]

    def _entry(self) -> tuple[str, Entry]:
        name = self._string()
        (dimensions,) = self._read("I")
        shape = self._read(f"{dimensions}Q")[::-1]
        kind, offset = self._read("IQ")
        if kind not in TYPES:
            raise SystemExit(f"error: tensor {name} has type {kind}; known are {TYPES}")
        return name, Entry(shape, TYPES[kind], offset)


def dequantise(blocks: Bytes, kind: str) -> Float32:
    """Values of quantised blocks, uint8 [n, bytes of a block] to float32 [n, 32]."""
    scale = _half(blocks, 0)
    if kind == "Q8_0":
        return scale * blocks[:, 2:].view(np.int8).astype(np.float32)
    quads = blocks[:, 2 if kind == "Q4_0" else 4 :]
    nibbles = np.concatenate([quads & 15, quads >> 4], axis=1).astype(np.float32)
    return scale * (nibbles - 8) if kind == "Q4_0" else scale * nibbles + _half(blocks, 2)


def _half(blocks: Bytes, at: int) -> Float32:
    """The fp16 at a byte of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)
