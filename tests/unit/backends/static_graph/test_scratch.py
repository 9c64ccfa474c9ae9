"""Directories for graphs: gone when they were used, and gone later where a process was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ernie_accel.backends.static_graph.scratch import FRESH_SECONDS, PREFIX, scratch

USER = """
import sys, time
from ernie_accel.backends.static_graph.scratch import scratch

with scratch() as folder:
    (folder / "weights").write_bytes(b"w")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def age(folder: Path) -> None:
    past = time.time() - 2 * FRESH_SECONDS
    os.utime(folder, (past, past))


def test_it_is_there_and_then_it_is_not(place: Path) -> None:
    with scratch() as folder:
        assert folder.parent == place
        (folder / "graph").write_text("x")
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_uses_is_not(place: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", USER], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        left = Path(user.stdout.readline().strip())
        age(left)
        with scratch():
            assert (left / "weights").exists()
        user.kill()
    assert (left / "weights").exists()
    with scratch():
        assert not left.exists()


def test_a_directory_that_was_just_made_is_left_alone(place: Path) -> None:
    young, link, other = place / f"{PREFIX}young", place / f"{PREFIX}link", place / "other"
    young.mkdir()
    other.mkdir()
    link.symlink_to(other)
    with scratch():
        pass
    assert young.exists()
    age(young)
    with scratch():
        pass
    assert not young.exists()
    assert link.exists()
    assert other.exists()
