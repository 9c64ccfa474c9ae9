"""How memory of a process is read, and that of the processes that it starts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ernie_accel.bench.memory import MemoryWatch, resident

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system tells nothing of memory"
)

HOLD = "held = b'x' * (64 << 20); print('there', flush=True); input()"


def test_a_system_that_tells_nothing_gives_zeros(tmp_path: Path) -> None:
    found = resident(tmp_path / "status", children=True)
    assert (found.own, found.mapped) == (0, 0)


@needs_proc
def test_the_watch_sees_what_was_there_for_a_moment_only() -> None:
    with MemoryWatch() as watch:
        held = bytearray(64 << 20)
        held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
        deadline = time.monotonic() + 20
        while watch.peak <= 60 << 20 and time.monotonic() < deadline:  # its thread looks when it gets to run
            time.sleep(0.001)
        del held
    assert watch.peak > 60 << 20


@needs_proc
def test_processes_that_were_started_count_where_they_are_asked_for() -> None:
    alone, together = resident(), resident(children=True)
    assert together.own - alone.own < 32 << 20
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        assert resident(children=True).own - together.own > 60 << 20
        assert resident().own - alone.own < 32 << 20
        child.communicate("")
