"""Interrupted runs are finished by the same call; a disk that refuses leaves nothing that looks complete."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ernie_accel.checkpoint.shard import merge, split, streams, verify
from ernie_accel.checkpoint.unfinished import partial_path
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.checkpoint.shard.common import contents, write

FILE_BYTES = 60_000
KILLED = """
import os, signal, sys
from ernie_accel.checkpoint.shard import merge, split

def progress(stage, done, total):
    if done > total * {share}:
        os.kill(os.getpid(), signal.SIGKILL)

{call}
"""


def killed(call: str, share: float) -> None:
    """Run a call in a process that ends itself by force after a share of the work."""
    code = KILLED.format(call=call, share=share)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


class Seen(NamedTuple):
    inode: int
    mtime: int


def finished(directory: Path) -> dict[Path, Seen]:
    """Weight files that have their name."""
    found = [path for path in directory.rglob("*.safetensors") if not path.name.startswith(".")]
    return {path.relative_to(directory): Seen(path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "m", tiny_config(True))


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_split_that_was_killed_goes_on(share: float, source: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "r", partial_path(tmp_path / "r")
    killed(
        f"split({str(source)!r}, {str(target)!r}, ranks=2, file_bytes={FILE_BYTES}, progress=progress)", share
    )
    assert not target.exists()
    assert list(work.rglob(".*.partial"))  # it was in the middle of a file
    before = finished(work)
    assert len(before) == 2 * round(len(before) / 2)
    assert bool(before) == (share > 0)
    split(source, target, ranks=2, file_bytes=FILE_BYTES)
    after = finished(target)
    assert before.items() <= after.items()  # the same files: not written again
    assert len(after) > len(before)
    assert not work.exists()
    assert not list(target.rglob(".*"))
    assert not list(target.rglob("journal*"))
    verify(target)
    merge(target, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_a_finished_file_that_was_damaged_meanwhile_is_made_again(source: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "r", partial_path(tmp_path / "r")
    killed(
        f"split({str(source)!r}, {str(target)!r}, ranks=2, file_bytes={FILE_BYTES}, progress=progress)", 0.6
    )
    before = finished(work)
    damaged = sorted(before)[1]
    content = (work / damaged).read_bytes()
    (work / damaged).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    split(source, target, ranks=2, file_bytes=FILE_BYTES)
    after = finished(target)
    same = {path for path, seen in before.items() if after[path] == seen}
    assert same == {path for path in before if path.name != damaged.name}
    verify(target)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_merge_that_was_killed_goes_on(share: float, tmp_path: Path) -> None:
    source = write(tmp_path / "m", tiny_config(True), shards=4)
    split(source, tmp_path / "r", ranks=2)
    target, work = tmp_path / "back", partial_path(tmp_path / "back")
    killed(f"merge({str(tmp_path / 'r')!r}, {str(target)!r}, progress=progress)", share)
    assert not target.exists()
    before = finished(work)
    assert bool(before) == (share > 0)
    if before:  # and one of them is damaged meanwhile
        first = sorted(before)[0]
        (work / first).write_bytes((work / first).read_bytes()[:-1] + b"?")
        before.pop(first)
    merge(tmp_path / "r", target)
    assert before.items() <= finished(target).items()
    assert contents(target) == contents(source)


class Stop:
    """A progress callback that raises after some calls."""

    def __init__(self, calls: int, error: BaseException) -> None:
        self._calls, self._error = calls, error

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._calls -= 1
        if self._calls == 0:
            raise self._error


def test_ctrl_c_keeps_what_is_finished_and_nothing_else(source: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "r", partial_path(tmp_path / "r")
    with pytest.raises(KeyboardInterrupt):
        split(source, target, ranks=2, progress=Stop(3, KeyboardInterrupt()))
    assert sorted(tmp_path.iterdir()) == [source]  # nothing was finished
    with pytest.raises(KeyboardInterrupt):
        split(source, target, ranks=2, file_bytes=FILE_BYTES, progress=Stop(30, KeyboardInterrupt()))
    assert finished(work)
    assert not list(work.rglob(".*.partial"))
    split(source, target, ranks=2, file_bytes=FILE_BYTES)
    with pytest.raises(KeyboardInterrupt):
        merge(target, tmp_path / "back", progress=Stop(3, KeyboardInterrupt()))
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_disk_that_fills_up_is_an_error_and_the_same_call_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, work = tmp_path / "r", partial_path(tmp_path / "r")
    written = streams.PieceWriter._write
    left = [60]

    def full(self: Any, part: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(self, part)

    with monkeypatch.context() as patched:
        patched.setattr(streams.PieceWriter, "_write", full)
        with pytest.raises(
            CheckpointError, match=r"/r: cannot be written: No space left.*kept in .*r\.partial, the"
        ):
            split(source, target, ranks=2, file_bytes=FILE_BYTES)
        assert finished(work)
        assert not list(work.rglob(".*.partial"))
        left[0] = 3
        with pytest.raises(CheckpointError, match=r"/s: cannot be written: No space left on device$"):
            split(source, tmp_path / "s", ranks=2)
        assert not partial_path(tmp_path / "s").exists()
    split(source, target, ranks=2, file_bytes=FILE_BYTES)
    verify(target)


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(source, tmp_path / "r", ranks=2)
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 16)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"/s: needs .* KiB more, but 64.0 KiB are free"):
        split(source, tmp_path / "s", ranks=2)
    with pytest.raises(CheckpointError, match=r"/back: needs .* KiB more, but 64.0 KiB are free"):
        merge(tmp_path / "r", tmp_path / "back")
    assert sorted(tmp_path.iterdir()) == [source, tmp_path / "r"]


def test_another_source_or_other_settings_do_not_go_on(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "r"
    how: dict[str, Any] = {"ranks": 2, "file_bytes": FILE_BYTES}
    with pytest.raises(KeyboardInterrupt):
        split(source, target, **how, progress=Stop(30, KeyboardInterrupt()))
    for other in ({"ranks": 4}, {"experts": "whole"}, {"file_bytes": 2 * FILE_BYTES}):
        with pytest.raises(ArgumentError, match="from another source or with other settings: remove it"):
            split(source, target, **{**how, **other})
    with pytest.raises(ArgumentError, match="from another source"):
        split(synthetic(tiny_config(True), seed=1), target, **how)
    os.utime(source / "model.safetensors", (1, 1))
    with pytest.raises(ArgumentError, match="from another source"):
        split(source, target, **how)


def test_one_process_at_a_time(source: Path, tmp_path: Path) -> None:
    def second(stage: str, done: int, total: int) -> None:
        with pytest.raises(ArgumentError, match="is being written by another process"):
            split(source, tmp_path / "r", ranks=2, progress=False)

    split(source, tmp_path / "r", ranks=2, progress=second)
    verify(tmp_path / "r")


def test_a_source_that_is_cut_short_meanwhile_is_an_error(source: Path, tmp_path: Path) -> None:
    def cut(stage: str, done: int, total: int) -> None:
        os.truncate(source / "model.safetensors", 200_000)

    with pytest.raises(CheckpointError, match=r"m/model.safetensors: tensor .* the file ends within it"):
        split(source, tmp_path / "r", ranks=2, progress=cut)
    assert not partial_path(tmp_path / "r").exists()


MEMORY = """
import re
from pathlib import Path

from ernie_accel.checkpoint.shard import merge, split
from ernie_accel.testing import synthetic

def peak():  # getrusage would count what the process that started this one had
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

split(synthetic("21B-A3B", layers=4), "r", ranks=4, progress=False)
print(peak())
merge("r", "m", progress=False)
print(peak())
"""


@pytest.mark.slow
def test_shapes_of_21b_pass_in_bounded_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 15 << 30:
        pytest.skip("needs 15 GiB of disk")
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=True
        )
    finally:
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == 2
    assert max(peaks) < 2 << 30
