"""Which part of every stored tensor goes into which file of which rank: it follows from configuration and headers.

The rules speak of tensors by ``-PT`` names, [out, in]. Here they are applied to what lies in files: turned, or several
side by side in one matrix, of which a rank then holds a range of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from ernie_accel.architecture import ModelConfig, TensorSpec, ernie4_5, tensor_specs
from ernie_accel.architecture.ernie4_5 import HEAD
from ernie_accel.architecture.split import Division, check_division, share
from ernie_accel.checkpoint.files import Located
from ernie_accel.checkpoint.headers import DTYPE_BITS
from ernie_accel.checkpoint.layouts import Layout, Part, bare_name, stored_parts
from ernie_accel.checkpoint.plan import make_plan
from ernie_accel.checkpoint.shard.source import SourceFile
from ernie_accel.checkpoint.writer import encode_header

__all__ = ["FILE_BYTES", "WHOLE", "Blueprint", "Group", "Held", "Slices", "Stored"]

FILE_BYTES = 2 << 30
"""Of the source, how much goes into the files that are finished together."""


class Slices(NamedTuple):
    """What a rank holds of a stored tensor: ranges of an axis one after the other, then padding of zeros.

    ``axis`` None is the whole tensor.
    """

    axis: Literal[0, 1] | None
    ranges: tuple[tuple[int, int], ...] = ()
    padding: int = 0

    @property
    def length(self) -> int:
        """Rows or columns, padding included."""
        return sum(stop - start for start, stop in self.ranges) + self.padding


WHOLE = Slices(None)


@dataclass(frozen=True)
class Stored:
    """A tensor of a source file; ``slices`` by rank, None where a rank has nothing of it."""

    file: SourceFile
    name: str
    slices: tuple[Slices | None, ...]

    @cached_property
    def dtype(self) -> str:
        """Tag in the file."""
        return self.file.header.tensors[self.name].dtype

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """As it lies."""
        return self.file.header.tensors[self.name].shape

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        entry = self.file.header.tensors[self.name]
        return entry.end - entry.start

    @property
    def item(self) -> int:
        """Bytes of a value of a tensor that is divided."""
        return DTYPE_BITS[self.dtype] // 8

    @cached_property
    def row(self) -> int:
        """Bytes of a row; a tensor that nobody divides is seen as rows of one byte."""
        divided = any(part and part.axis is not None for part in self.slices)
        return self.shape[1] * self.item if divided else 1


class Held(NamedTuple):
    """A rank's part of a tensor: ``offset`` is bytes from the beginning of the rank's file."""

    tensor: Stored
    slices: Slices
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Group(NamedTuple):
    """Tensors that lie in one file of each rank; ``name`` is that of the file."""

    name: str
    tensors: tuple[Stored, ...]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Of the source, bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def held(self, rank: int) -> tuple[bytes, list[Held]]:
        """Return what a rank's file begins with, and its tensors in the order of their bytes; b"" if it has none."""
        mine = [(tensor, part) for tensor in self.tensors if (part := tensor.slices[rank]) is not None]
        if not mine:
            return b"", []
        shapes = [_shape_of(tensor, part) for tensor, part in mine]
        entries = [
            (tensor.name, shape, tensor.dtype) for (tensor, _), shape in zip(mine, shapes, strict=True)
        ]
        text = encode_header(entries, self.metadata)
        held, offset = [], len(text)
        for (tensor, part), shape in zip(mine, shapes, strict=True):
            nbytes = math.prod(shape) * DTYPE_BITS[tensor.dtype] // 8
            held.append(Held(tensor, part, shape, offset, nbytes))
            offset += nbytes
        return text, held


class Blueprint:
    """A checkpoint and its division.

    Attributes:
        groups: What is written together, in order.
        nbytes: Size of all tensors, bytes.
    """

    def __init__(
        self,
        config: ModelConfig,
        files: Sequence[SourceFile],
        division: Division,
        where: Path,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        """Work it out; ``where`` is the directory in errors.

        Raises:
            ArgumentError: The model cannot be divided like that.
            CheckpointError: The headers do not fit the configuration.
            UnsupportedCheckpointError: The weights are quantised.
        """
        stored = {
            name: Located(where / file.name, entry)
            for file in files
            for name, entry in file.header.tensors.items()
        }
        plan = make_plan(config, stored, where)
        check_division(config, division)
        rules = _Rules(config, division, plan.layout)
        tensors = [
            Stored(file, name, rules.slices(name, entry.shape))
            for file in files
            for name, entry in sorted(file.header.tensors.items(), key=lambda item: item[1].start)
        ]
        self.config, self.division = config, division
        self.groups = _groups(tensors, file_bytes)
        self.nbytes = sum(group.nbytes for group in self.groups)

    def rank_bytes(self, rank: int) -> int:
        """Bytes of a rank's tensors."""
        return sum(held.nbytes for group in self.groups for held in group.held(rank)[1])


class _Rules:
    """The rules of ``architecture/split.py`` for tensors as they lie in files of a layout."""

    def __init__(self, config: ModelConfig, division: Division, layout: Layout) -> None:
        self._config, self._division = config, division
        self._specs = {**tensor_specs(config), **_beside(config)}
        self._members: dict[str, list[tuple[str, Part]]] = {}
        for name, part in stored_parts(self._specs, layout).items():
            self._members.setdefault(part.stored, []).append((name, part))

    def slices(self, stored: str, shape: tuple[int, ...]) -> tuple[Slices | None, ...]:
        """Return what each rank holds. A tensor that is no part of the model is whole on every rank."""
        ranks = range(self._division.ranks)
        members = self._members.get(bare_name(stored), [])
        if not members or members[0][1].shape != shape:
            return tuple(WHOLE for _ in ranks)
        parts = tuple(self._of_rank(members, rank) for rank in ranks)
        full = all(part is None or _covers(part, shape[part.axis or 0]) for part in parts)
        return tuple(part and WHOLE for part in parts) if full else parts

    def _of_rank(self, members: Sequence[tuple[str, Part]], rank: int) -> Slices | None:
        ranges: list[tuple[int, int]] = []
        axis: Literal[0, 1] = 0
        padding = 0
        for name, part in members:
            mine = share(self._config, self._division, name, self._specs[name], rank)
            if mine is None:
                return None
            first = part.start if mine.axis == 0 else 0
            ranges.append((first + mine.start, first + mine.stop))
            axis, padding = 1 if part.transposed != (mine.axis == 1) else 0, mine.padding
        return Slices(axis, tuple(ranges), padding)


def _covers(part: Slices, length: int) -> bool:
    ends = [0, *(stop for _, stop in part.ranges)]
    return not part.padding and ends[-1] == length and [start for start, _ in part.ranges] == ends[:-1]


def _beside(config: ModelConfig) -> dict[str, TensorSpec]:
    """What files may hold beside the model: its embedding again as the head, and multi-token prediction.

    The latter is dense layers; what leads into them is whole on every rank, so nothing need be known of it.
    """
    specs = {HEAD: TensorSpec((config.vocab_size, config.hidden_size), "head")}
    layer = ernie4_5.tensor_specs(replace(config, num_hidden_layers=1))
    for index in range(config.num_nextn_predict_layers):
        specs.update(
            (name.replace("model.layers.0.", f"model.mtp_block.{index}."), spec)
            for name, spec in layer.items()
            if name.startswith("model.layers.0.")
        )
    return specs


def _shape_of(tensor: Stored, part: Slices) -> tuple[int, ...]:
    if part.axis is None:
        return tensor.shape
    rows, columns = tensor.shape
    return (part.length, columns) if part.axis == 0 else (rows, part.length)


def _groups(tensors: Sequence[Stored], file_bytes: int) -> tuple[Group, ...]:
    """Runs of tensors of one source file, up to a size; within a group values are aligned in every rank's file."""
    runs: list[list[Stored]] = []
    size = 0
    for tensor in tensors:
        if not runs or runs[-1][0].file is not tensor.file or size + tensor.nbytes > file_bytes:
            runs.append([])
            size = 0
        runs[-1].append(tensor)
        size += tensor.nbytes
    names = [f"model-{number:05d}-of-{len(runs):05d}.safetensors" for number in range(1, len(runs) + 1)]
    if len(runs) == 1:
        names = ["model.safetensors"]
    return tuple(
        Group(name, tuple(sorted(run, key=lambda item: -DTYPE_BITS[item.dtype])), run[0].file.header.metadata)
        for name, run in zip(names, runs, strict=True)
    )
