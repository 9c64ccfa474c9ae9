"""``split``: from a checkpoint to a directory for every rank, in one pass over its tensors."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ernie_accel.architecture.split import RULES_VERSION, Division, ExpertSplit
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.files import INDEX_NAME, SHARD_NAME
from ernie_accel.checkpoint.shard.blueprint import FILE_BYTES, Blueprint, Group, Held, Stored
from ernie_accel.checkpoint.shard.manifest import FORMAT, Manifest, SourceRecord, encode_manifest, rank_name
from ernie_accel.checkpoint.shard.source import VirtualSource, WeightsSource
from ernie_accel.checkpoint.shard.streams import PieceWriter, check_file, scatter
from ernie_accel.checkpoint.strict_json import encode_json
from ernie_accel.checkpoint.unfinished import (
    DiskError,
    Journal,
    check_target,
    partial_path,
    remove_strays,
    sync_directory,
)
from ernie_accel.checkpoint.writer import replace_file
from ernie_accel.display import size
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.progress import Counter, reporting
from ernie_accel.types import Progress

__all__ = ["SplitReport", "check_room", "publish", "split", "writing"]


@dataclass(frozen=True)
class SplitReport:
    """What ``split`` wrote.

    Attributes:
        directory: Holds a directory for every rank.
        ranks: How many.
        experts: ``"cut"`` or ``"whole"``.
        rank_bytes: Of each rank's tensors.
        source_bytes: Of the tensors that were divided.
        source_sha256: Names the source by all of its bytes.
    """

    directory: Path
    ranks: int
    experts: ExpertSplit
    rank_bytes: tuple[int, ...]
    source_bytes: int
    source_sha256: str

    def rows(self) -> list[tuple[str, str]]:
        """Name and value, for a table."""
        return [
            ("directory", str(self.directory)),
            ("ranks", str(self.ranks)),
            ("experts", self.experts),
            ("largest rank", size(max(self.rank_bytes))),
            ("all ranks", size(sum(self.rank_bytes))),
            ("source", f"{size(self.source_bytes)}, {self.source_sha256[:16]}"),
        ]


def split(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str],
    *,
    ranks: int,
    experts: ExpertSplit = "cut",
    file_bytes: int = FILE_BYTES,
    progress: bool | Progress | None = None,
) -> SplitReport:
    """Write a directory of directories, ``rank-00-of-04`` and so on, each with what one of several ranks holds.

    Tensors keep the layout and dtype that they have; a rank's directory has safetensors files, the configuration of the
    whole model, its tokenizer, and ``shard.json``, which says what is in it. The target appears when it is complete; a
    call that was interrupted is finished by the same call, which keeps the files that are what they should be.

    Args:
        source: A checkpoint directory, or a checkpoint from ``ernie_accel.testing``; unquantised.
        target: Directory to create; an empty one may exist.
        ranks: Among how many. They must divide query heads and feed-forward widths; of the key and value heads they
            are a divisor, or a multiple (several ranks then hold one). A vocabulary is padded.
        experts: ``"cut"`` divides the width of every expert, ``"whole"`` gives every rank some of the experts.
        file_bytes: Of the source, how much goes into files that are finished together, bytes.
        progress: None shows a bar on stderr if that is a terminal or a notebook; True always; False never; a
            callable is called as ``progress(stage, done, total)``.

    Raises:
        ArgumentError: The model cannot be divided like that, or the target exists and is not empty.
        CheckpointError: The source is damaged, or the disk refuses or is too small.
        UnsupportedCheckpointError: The source is quantised or no text model.
    """
    division = Division(ranks, experts)
    if isinstance(file_bytes, bool) or not isinstance(file_bytes, int) or file_bytes < 1:
        raise ArgumentError(f"file_bytes={file_bytes!r}: must be a whole number of at least 1")
    path = Path(target)
    check_target(path)
    weights = _open(source)
    blueprint = Blueprint(weights.config, weights.files, division, Path(weights.name), file_bytes)
    with reporting(progress) as report:
        return _Split(weights, blueprint, file_bytes, path, Counter(report, "shard", blueprint.nbytes)).run()


def _open(source: str | os.PathLike[str] | Checkpoint) -> WeightsSource | VirtualSource:
    if isinstance(source, (str, os.PathLike)):
        return WeightsSource(Path(source))
    if not all(hasattr(source, name) for name in ("config", "info", "tensor", "directory")):
        raise ArgumentError(f"source={source!r}: must be the path of a checkpoint directory, or a checkpoint")
    return VirtualSource(source) if source.directory is None else WeightsSource(source.directory)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk says into an error of ours."""
    try:
        yield
    except OSError as error:
        kept = partial_path(target).exists()
        hint = (
            f"; what is finished is kept in {partial_path(target)}, the same call goes on with it"
            if kept
            else ""
        )
        raise DiskError(f"{target}: cannot be written: {error.strerror or error}{hint}") from error


def check_room(work: Path, target: Path, needed: int) -> None:
    """Fail before hours of work where the disk is too small for so many bytes."""
    free = shutil.disk_usage(work).free
    if needed > free:
        raise DiskError(
            f"{target}: needs {size(needed)} more, but {size(free)} are free: make room, or choose another disk"
        )


def publish(work: Path, target: Path, journal: Journal) -> None:
    """Give a finished directory its name."""
    os.replace(work, target)  # replaces an empty directory; the journal is locked until then
    (target / journal.path.name).unlink()
    sync_directory(target.parent)


class _Split:
    """One call of ``split``."""

    def __init__(
        self,
        source: WeightsSource | VirtualSource,
        blueprint: Blueprint,
        file_bytes: int,
        target: Path,
        counter: Counter,
    ) -> None:
        self._source, self._blueprint, self._file_bytes = source, blueprint, file_bytes
        self._target, self._counter = target, counter
        self._work = partial_path(target)
        self._ranks = range(blueprint.division.ranks)
        self._whole: dict[str, str] = {}
        self._parts: list[dict[str, str]] = [{} for _ in self._ranks]

    def run(self) -> SplitReport:
        division = self._blueprint.division
        with writing(self._target), ExitStack() as stack:
            self._work.mkdir(parents=True, exist_ok=True)
            journal = stack.enter_context(Journal(self._work, self._identity()))
            remove_strays(self._work)
            try:
                self._write(journal)
            except BaseException:
                if not journal.lines:
                    shutil.rmtree(self._work, ignore_errors=True)
                raise
            publish(self._work, self._target, journal)
        return SplitReport(
            directory=self._target,
            ranks=division.ranks,
            experts=division.experts,
            rank_bytes=tuple(map(self._blueprint.rank_bytes, self._ranks)),
            source_bytes=self._blueprint.nbytes,
            source_sha256=self._record().sha256,
        )

    def _identity(self) -> dict[str, Any]:
        division = self._blueprint.division
        return {
            "format": FORMAT,
            "rules": RULES_VERSION,
            "source": self._source.identity,
            "ranks": division.ranks,
            "experts": division.experts,
            "file_bytes": self._file_bytes,
        }

    def _write(self, journal: Journal) -> None:
        for rank in self._ranks:
            self._directory(rank).mkdir(exist_ok=True)
        done = {line.get("group"): line for line in journal.lines}
        groups = [
            group for group in self._blueprint.groups if not self._finished(group, done.get(group.name))
        ]
        sizes = (len(text) + sum(item.nbytes for item in held) for text, held in self._files(groups))
        check_room(self._work, self._target, sum(sizes))
        for group in groups:
            tensors = self._write_group(group)
            for rank in self._ranks:
                sync_directory(self._directory(rank))
            journal.note({"group": group.name, "tensors": tensors})
        record = self._record()
        for rank in self._ranks:
            self._write_beside(rank, record)

    def _directory(self, rank: int) -> Path:
        return self._work / rank_name(rank, len(self._ranks))

    def _keep(self, tensors: Mapping[str, Sequence[Any]]) -> None:
        """Remember hashes: of the whole tensor, then of the ranks' parts."""
        for name, (whole, *parts) in tensors.items():
            self._whole[name] = whole
            for rank, part in enumerate(parts):
                if part is not None:
                    self._parts[rank][name] = part

    def _finished(self, group: Group, line: Mapping[str, Any] | None) -> bool:
        """Whether an interrupted run finished the group, and its files are still what it wrote."""
        try:
            tensors = {} if line is None else line["tensors"]
            if set(tensors) != {tensor.name for tensor in group.tensors}:
                return False
            for rank in self._ranks:
                text, held = group.held(rank)
                parts = [
                    (item.tensor.name, item.nbytes, tensors[item.tensor.name][1 + rank]) for item in held
                ]
                if held:
                    check_file(self._directory(rank) / group.name, text, parts, lambda nbytes: None)
        except (CheckpointError, OSError, LookupError, TypeError):
            return False
        self._keep(tensors)
        self._counter.add(group.nbytes)
        return True

    def _files(self, groups: Sequence[Group]) -> Iterator[tuple[bytes, list[Held]]]:
        for group in groups:
            yield from map(group.held, self._ranks)

    def _write_group(self, group: Group) -> dict[str, list[str | None]]:
        """Write the group's file of every rank; when this returns, they are on disk under their names."""
        with ExitStack() as stack:
            outputs: list[tuple[BinaryIO, dict[str, Held]] | None] = []
            finished: list[tuple[Path, Path]] = []
            for rank in self._ranks:
                text, held = group.held(rank)
                if not held:
                    outputs.append(None)
                    continue
                path = self._directory(rank) / group.name
                unfinished = path.with_name(f".{path.name}.partial")
                file = stack.enter_context(unfinished.open("wb"))
                stack.callback(unfinished.unlink, missing_ok=True)
                file.write(text)
                outputs.append((file, {item.tensor.name: item for item in held}))
                finished.append((unfinished, path))
            tensors = {tensor.name: self._pass_on(tensor, outputs) for tensor in group.tensors}
            for output in outputs:
                if output is not None:
                    output[0].flush()
                    os.fsync(output[0].fileno())
            for unfinished, path in finished:
                os.replace(unfinished, path)
        self._keep(tensors)
        return tensors

    def _pass_on(
        self, tensor: Stored, outputs: Sequence[tuple[BinaryIO, dict[str, Held]] | None]
    ) -> list[str | None]:
        writers = [
            PieceWriter(output[0], output[1][tensor.name]) if output and tensor.name in output[1] else None
            for output in outputs
        ]
        pieces = self._source.read(tensor.file, tensor.name, tensor.row)
        whole, parts = scatter(pieces, writers, self._counter.add)
        return [whole, *parts]

    def _record(self) -> SourceRecord:
        source = self._source
        return SourceRecord(
            name=source.name,
            files=tuple(source.files),
            index=None if source.index is None else source.index.decode(),
            tensors=dict(sorted(self._whole.items())),
            small_files={name: hashlib.sha256(data).hexdigest() for name, data in source.small_files.items()},
        )

    def _write_beside(self, rank: int, record: SourceRecord) -> None:
        """Write a rank's index, small files and manifest."""
        directory, groups = self._directory(rank), self._blueprint.groups
        held = [(group.name, item) for group in groups for item in group.held(rank)[1]]
        files = dict(self._source.small_files)
        if len(groups) > 1:
            total = sum(item.nbytes for _, item in held)
            places = {item.tensor.name: name for name, item in held}
            files[INDEX_NAME] = encode_json({"metadata": {"total_size": total}, "weight_map": places})
        manifest = Manifest(rank, self._blueprint.division, self._file_bytes, record, self._parts[rank])
        files[SHARD_NAME] = encode_manifest(manifest, held)
        for name, data in files.items():
            replace_file(directory / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
        sync_directory(directory)
