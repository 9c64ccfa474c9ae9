"""Writing is all or nothing, and what was interrupted goes on where it stopped."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.registry import available
from ernie_accel.checkpoint.packed.writer import PackedWriter
from ernie_accel.checkpoint.unfinished import JOURNAL_NAME, partial_path
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.checkpoint.packed.stand_in import StandIn, write

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

UNITS = 4
"""Units of the tiny untied model: embedding, two layers, head."""


def source() -> StandIn:
    return StandIn(synthetic(tiny_config(tie_word_embeddings=False)), "int8")


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    write(source(), tmp_path / "whole")
    return files(tmp_path / "whole")


Stop = Callable[[int, BaseException], None]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    """Let the unit after so many raise; the rest stays as it is."""

    def arm(count: int, error: BaseException) -> None:
        original = PackedWriter._write
        calls = iter(range(1000))

        def failing(self: PackedWriter, data: Any) -> Any:
            # an embedding is one write; a layer four matrices and two norms
            if next(calls) >= {0: 0, 1: 1, 2: 9}[count]:
                raise error
            return original(self, data)

        monkeypatch.setattr(PackedWriter, "_write", failing)

    yield arm
    monkeypatch.undo()


def test_two_runs_write_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    write(source(), tmp_path / "again")
    assert files(tmp_path / "again") == whole
    assert sorted(item.name for item in tmp_path.iterdir()) == ["again", "whole"]


# Classes, as errors that are kept here would keep the frames that they came through.
@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ea.CheckpointError])
def test_an_interrupted_run_goes_on(
    done: int,
    error: type[BaseException],
    tmp_path: Path,
    whole: dict[str, bytes],
    stop_after: Stop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "m"
    stop_after(done, error("the source broke"))
    with pytest.raises(error):
        write(source(), target)
    assert not target.exists()
    monkeypatch.undo()
    with PackedWriter(target, {}) as writer:
        assert len(writer.done) == done
    write(source(), target)
    assert files(target) == whole
    assert not partial_path(target).exists()


def test_a_torn_journal_line_and_torn_data_are_written_again(
    tmp_path: Path, whole: dict[str, bytes], stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    stop_after(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(source(), target)
    monkeypatch.undo()
    journal = partial_path(target) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    with (partial_path(target) / "weights.eapack").open("ab") as file:
        file.write(b"half a layer")
    write(source(), target)
    assert files(target) == whole


def test_data_that_is_lost_is_noticed(
    tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    stop_after(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(source(), target)
    monkeypatch.undo()
    os.truncate(partial_path(target) / "weights.eapack", 5000)
    with pytest.raises(ea.CheckpointError, match=r"shorter than journal.jsonl beside it says: remove"):
        write(source(), target)


def test_another_source_or_setting_is_not_mixed_in(
    tmp_path: Path, stop_after: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    stop_after(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(source(), target, identity={"source": "a"})
    monkeypatch.undo()
    with pytest.raises(ea.ArgumentError, match=r"m\.partial: holds an unfinished directory.*remove it"):
        write(source(), target, identity={"source": "b"})
    write(source(), target, identity={"source": "a"})


def test_nothing_finished_leaves_nothing(tmp_path: Path, stop_after: Stop) -> None:
    stop_after(0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(source(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [1, 3, 5, 6, 7])
def test_a_full_disk_leaves_nothing(tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ea.CheckpointError, match=r"m: cannot be written: No space left"):
        write(source(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_the_disk_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, iter(range(1000))

    def broken(descriptor: int) -> None:
        if next(calls) == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ea.CheckpointError, match="cannot be written"):
        write(source(), tmp_path / "m")
    monkeypatch.undo()
    assert [item.name for item in tmp_path.iterdir()] == ["m.partial"]
    write(source(), tmp_path / "m")
    assert [item.name for item in tmp_path.iterdir()] == ["m"]
    assert not (tmp_path / "m" / JOURNAL_NAME).exists()


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes").touch()
    with pytest.raises(ea.ArgumentError, match="exists and is not an empty directory"):
        write(source(), tmp_path / "m")
    (tmp_path / "m" / "notes").unlink()
    write(source(), tmp_path / "m")
    with pytest.raises(ea.ArgumentError, match="exists and is not an empty directory"):
        write(source(), tmp_path / "m")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "m", {}), pytest.raises(ea.ArgumentError, match="by another process"):
        PackedWriter(tmp_path / "m", {})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ea.CheckpointError, match="cannot be written"):
        write(source(), tmp_path / "file" / "m")
