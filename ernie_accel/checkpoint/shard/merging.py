"""``merge`` and ``verify``: from the directories of all ranks back to the checkpoint, and whether they are sound."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from ernie_accel.checkpoint.files import INDEX_NAME, SHARD_NAME
from ernie_accel.checkpoint.shard.blueprint import Blueprint, Group, Stored
from ernie_accel.checkpoint.shard.manifest import FORMAT
from ernie_accel.checkpoint.shard.ranks import Rank, check_small_files, find_ranks, open_rank, verify_rank
from ernie_accel.checkpoint.shard.source import SourceFile, reading
from ernie_accel.checkpoint.shard.splitting import check_room, publish, writing
from ernie_accel.checkpoint.shard.streams import PieceReader, check_file, gather
from ernie_accel.checkpoint.unfinished import Journal, check_target, partial_path, remove_strays
from ernie_accel.checkpoint.writer import replace_file
from ernie_accel.errors import CheckpointError
from ernie_accel.progress import Counter, reporting
from ernie_accel.types import Progress

__all__ = ["merge", "verify"]


def merge(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: bool | Progress | None = None,
) -> int:
    """Put a checkpoint that ``split`` divided together again: its files, bit for bit.

    Every part is compared with its hash, copies of one part with each other, and every tensor with the hash that it had
    in the source. The target appears when it is complete; a call that was interrupted is finished by the same call.

    Args:
        source: The directory that holds those of all ranks.
        target: Directory to create; an empty one may exist.
        progress: As in ``split``.

    Returns:
        The bytes of all tensors.

    Raises:
        ArgumentError: The target exists and is not empty.
        CheckpointError: A rank is missing, damaged or of another division, or the disk refuses or is too small.
    """
    path, directory = Path(target), Path(source)
    check_target(path)
    ranks, blueprint = find_ranks(directory)
    with reporting(progress) as report:
        _Merge(ranks, blueprint, path, Counter(report, "merge", blueprint.nbytes)).run()
    return blueprint.nbytes


def verify(source: str | os.PathLike[str], *, progress: bool | Progress | None = None) -> int:
    """Read everything that ``split`` wrote and compare it with the hashes that it recorded.

    Args:
        source: The directory that holds those of all ranks, or that of one rank.
        progress: As in ``split``.

    Returns:
        The bytes of all tensors that were compared.

    Raises:
        CheckpointError: Anything is missing, damaged or of another division.
    """
    directory = Path(source)
    if (directory / SHARD_NAME).exists():
        rank, blueprint = open_rank(directory)
        ranks = [rank]
    else:
        ranks, blueprint = find_ranks(directory)
    total = sum(blueprint.rank_bytes(rank.manifest.rank) for rank in ranks)
    with reporting(progress) as report:
        counter = Counter(report, "verify", total)
        for rank in ranks:
            verify_rank(rank, blueprint, counter.add)
    return total


class _Merge:
    """One call of ``merge``."""

    def __init__(self, ranks: list[Rank], blueprint: Blueprint, target: Path, counter: Counter) -> None:
        self._ranks = sorted(ranks, key=lambda rank: rank.manifest.rank)
        self._blueprint, self._target, self._counter = blueprint, target, counter
        self._record = ranks[0].manifest.source
        self._work = partial_path(target)

    def run(self) -> None:
        for rank in self._ranks:
            check_small_files(rank)
        with writing(self._target), ExitStack() as stack:
            self._work.mkdir(parents=True, exist_ok=True)
            identity = {"format": f"{FORMAT} merged", "source": self._record.sha256}
            journal = stack.enter_context(Journal(self._work, identity))
            remove_strays(self._work)
            try:
                self._write(journal)
            except BaseException:
                if not journal.lines:
                    shutil.rmtree(self._work, ignore_errors=True)
                raise
            publish(self._work, self._target, journal)

    def _write(self, journal: Journal) -> None:
        done = {line.get("file") for line in journal.lines}
        files = [file for file in self._record.files if not (file.name in done and self._finished(file))]
        check_room(self._work, self._target, sum(map(_size, files)))
        for file in files:
            replace_file(self._work / file.name, lambda output, file=file: self._fill(output, file))  # type: ignore[misc]
            journal.note({"file": file.name})
        for name in self._record.small_files:
            data = (self._ranks[0].directory / name).read_bytes()
            replace_file(self._work / name, lambda output, data=data: output.write(data))  # type: ignore[misc]
        if self._record.index is not None:
            index = self._record.index.encode()
            replace_file(self._work / INDEX_NAME, lambda output: output.write(index))

    def _finished(self, file: SourceFile) -> bool:
        """Whether an interrupted run finished the file, and it is still what it was in the source."""
        digests = self._record.tensors
        entries = sorted(file.header.tensors.items(), key=lambda item: item[1].start)
        tensors = [(name, entry.end - entry.start, digests[name]) for name, entry in entries]
        try:
            check_file(self._work / file.name, file.text, tensors, lambda nbytes: None)
        except CheckpointError:
            return False
        self._counter.add(sum(nbytes for _, nbytes, _ in tensors))
        return True

    def _fill(self, output: BinaryIO, file: SourceFile) -> None:
        output.write(file.text)
        for group in self._blueprint.groups:
            if group.tensors[0].file.name == file.name:
                self._fill_group(output, group)

    def _fill_group(self, output: BinaryIO, group: Group) -> None:
        """Append the group's tensors, in the order that they have in the source."""
        with ExitStack() as stack:
            files = [_RankFile(stack, rank, group) for rank in self._ranks]
            for tensor in sorted(group.tensors, key=lambda item: item.file.header.tensors[item.name].start):
                readers = [reader for file in files if (reader := file.reader(tensor)) is not None]
                digest = hashlib.sha256()
                for rows in gather(tensor, readers):
                    output.write(rows.data)
                    digest.update(rows.data)
                    self._counter.add(rows.nbytes)
                if digest.hexdigest() != self._record.tensors[tensor.name]:
                    raise CheckpointError(
                        f"{self._ranks[0].directory.parent}: tensor {tensor.name!r}: its parts are sound, but "
                        "together they are not what was split"
                    )


class _RankFile:
    """The file of a rank that holds its parts of a group."""

    def __init__(self, stack: ExitStack, rank: Rank, group: Group) -> None:
        self._path, self._digests = rank.directory / group.name, rank.manifest.tensors
        text, held = group.held(rank.manifest.rank)
        self._held = {item.tensor.name: item for item in held}
        if not held:
            return
        with reading(self._path):
            self._file = stack.enter_context(self._path.open("rb"))
            if self._file.read(len(text)) != text:
                raise CheckpointError(f"{self._path}: its header is not the one that was written")

    def reader(self, tensor: Stored) -> PieceReader | None:
        """Return what reads the rank's part of a tensor, None if it has none."""
        held = self._held.get(tensor.name)
        return held and PieceReader(self._path, self._file, held, self._digests[tensor.name])


def _size(file: SourceFile) -> int:
    return len(file.text) + sum(entry.end - entry.start for entry in file.header.tensors.values())
