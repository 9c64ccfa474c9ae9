"""Every way in which the child may fail ends in a typed error within bounded time, and leaves no process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from ernie_accel.backends.base import Step
from ernie_accel.backends.static_graph.fastdeploy_executor import ChildExecutor
from ernie_accel.backends.static_graph.memory import SharedMemory
from ernie_accel.backends.static_graph.runner import StaticGraphRunner
from ernie_accel.errors import BackendError, BackendProcessError, CapacityError, ClosedError
from tests.unit.backends.fastdeploy.fake import Fake

SECONDS = 20.0
"""Far above what any of this takes, far below what a hanging child would."""


def pid_of(runner: StaticGraphRunner) -> int:
    executor = runner._executor
    assert isinstance(executor, ChildExecutor)
    return executor.pid


def alive(pid: int) -> bool:
    """Whether a process computes or could; one that only waits to be buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + SECONDS
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(pid), f"process {pid} is still there"


def step(
    runner: StaticGraphRunner, seq: int, ids: list[int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    logits = runner.forward([Step(seq, ids)])[0].logits
    assert logits is not None
    return logits


def test_steps_are_computed_and_nothing_is_left(fake: Fake) -> None:
    runner = fake.open()
    pid = pid_of(runner)
    seq = runner.open()
    assert step(runner, seq, [5, 6]).argmax() == 7
    assert step(runner, seq, [9]).argmax() == 10
    assert runner.length(seq) == 3
    cached = runner._state(seq).arena
    assert cached is not None
    assert np.array_equal(
        cached.data[0, 0, 0, :3, 0], [0, 1, 2]
    )  # positions, which is what the fake's keys are
    assert alive(pid)
    runner.close()
    assert not alive(pid)
    with pytest.raises(ClosedError):
        step(runner, seq, [1])


@pytest.mark.parametrize(
    ("fault", "words", "code"),
    [
        ("abort", "SIGABRT", -6),
        ("kill", "SIGKILL", -9),
        ("exit", "exit code 3", 3),
    ],
)
def test_an_end_in_the_middle_of_a_step(fake: Fake, fault: str, words: str, code: int) -> None:
    fake.behave(fault, after=1)
    runner = fake.open()
    seq = runner.open()
    step(runner, seq, [1, 2, 3])
    with pytest.raises(BackendProcessError, match=words) as caught:
        step(runner, seq, [4])
    assert caught.value.exit_code == code
    assert runner.length(seq) == 3
    with pytest.raises(BackendProcessError, match=words):  # and so does every later step
        step(runner, seq, [4])
    assert not alive(pid_of(runner))


def test_killed_from_outside_between_steps(fake: Fake) -> None:
    runner = fake.open()
    seq = runner.open()
    step(runner, seq, [1])
    os.kill(pid_of(runner), 9)
    with pytest.raises(BackendProcessError, match="SIGKILL"):
        step(runner, seq, [2])
    runner.free(seq)
    runner.close()


def test_the_last_words_are_in_the_error(fake: Fake) -> None:
    fake.behave("abort at load")
    with pytest.raises(
        BackendProcessError, match=r"(?s)load the graph \(signal 6, SIGABRT\).*this graph has a defect"
    ) as caught:
        fake.open()
    assert caught.value.log[-1].endswith("this graph has a defect")


def test_a_step_that_hangs_is_ended(fake: Fake) -> None:
    fake.behave("hang")
    runner = fake.open(step_timeout=0.5)
    begun = time.monotonic()
    with pytest.raises(BackendProcessError, match=r"did not compute a step within 0\.5 s"):
        step(runner, runner.open(), [1])
    assert time.monotonic() - begun < SECONDS
    assert not alive(pid_of(runner))


def test_an_import_that_hangs_is_ended(fake: Fake) -> None:
    fake.behave("hang at import")
    with pytest.raises(BackendProcessError, match=r"did not import fastdeploy within 0\.5 s"):
        fake.open(load_timeout=0.5)


def test_grandchildren_are_ended_too(fake: Fake) -> None:
    fake.behave("grandchild")
    runner = fake.open(step_timeout=1.0)
    with pytest.raises(BackendProcessError):
        step(runner, runner.open(), [1])
    ((pid,),) = fake.told_of("grandchild")
    wait_until_gone(pid)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("fail at import", "failed to import fastdeploy: ImportError: libfastdeploy.so"),
        ("refuse", "failed to load the graph: AssertionError: Initialize Runtime Failed!"),
    ],
)
def test_what_the_child_says_is_the_error(fake: Fake, fault: str, words: str) -> None:
    fake.behave(fault)
    with pytest.raises(BackendError, match=words):
        fake.open()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "KeyError: 'no such input'"),
        ("stale", "Failed to Infer: invalid dimensions"),
        ("shape", r"output 'new' is float32 .* and should be"),
        ("type", "output 'logits' is float64"),
        ("missing", "KeyError: 'logits'"),
        ("nan", "'logits' holds NaN or infinity"),
        ("infinity", "'new' holds NaN or infinity"),
    ],
)
def test_a_wrong_answer_is_an_error_and_changes_nothing(fake: Fake, fault: str, words: str) -> None:
    fake.behave(fault, after=1)
    runner = fake.open()
    seq = runner.open()
    step(runner, seq, [1, 2])
    with pytest.raises(BackendError, match=words):
        step(runner, seq, [3])
    assert runner.length(seq) == 2
    assert alive(pid_of(runner))


def test_a_child_that_talks_is_listened_to(fake: Fake) -> None:
    fake.behave("talk")
    runner = fake.open()
    seq = runner.open()
    for token in range(8):
        assert step(runner, seq, [token]).argmax() == token + 1


def test_an_answer_that_is_no_message_is_an_error_of_ours(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = fake.open()
    worker = runner._executor._worker  # type: ignore[attr-defined]
    monkeypatch.setattr(worker, "_read", lambda count, deadline: bytes(3) + b"\2" if count == 4 else b"no")
    seq = runner.open()
    for _ in range(2):
        with pytest.raises(BackendProcessError, match="compute a step"):
            step(runner, seq, [5])
    wait_until_gone(worker.pid)


def test_shared_memory_that_is_used_up_is_a_capacity_error(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise MemoryError("8 bytes of shared memory are not to be had")

    runner = fake.open()
    monkeypatch.setattr(SharedMemory, "zeros", none)
    with pytest.raises(CapacityError, match="not to be had"):
        step(runner, runner.open(), [5])
    monkeypatch.setattr(SharedMemory, "__init__", none)
    with pytest.raises(CapacityError, match="backend 'fastdeploy-ort': 8 bytes"):
        fake.open()


def test_no_room_for_the_graph_says_where(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(fake.folder / "nowhere"))
    with pytest.raises(BackendError, match=r"the graph cannot be written.*TMPDIR"):
        fake.open()


def test_a_python_that_is_none(fake: Fake) -> None:
    from ernie_accel.backends.static_graph.worker import Worker

    with pytest.raises(BackendProcessError, match="cannot be started"):
        Worker(str(fake.folder / "nothing"), "test", {})


PARENT = """
import os, sys
from ernie_accel.backends.static_graph.worker import Worker
worker = Worker(sys.executable, "test", os.environ)
worker.ask("import", 60, op="start")
print(worker.pid, flush=True)
if sys.argv[1] == "busy":
    worker.begin("hang", op="open", runtime="ort", model="", threads=1)
    worker.begin("hang", op="run", inputs=[], outputs=[])
    print("asked", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_child_ends_with_its_parent(fake: Fake, state: str) -> None:
    fake.behave("hang")
    parent = subprocess.Popen(
        [fake.python, "-c", PARENT, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if state == "busy":
        parent.stdout.readline()
        time.sleep(0.5)  # let it reach the step that hangs
    assert alive(pid)
    parent.kill()
    parent.communicate()
    wait_until_gone(pid)


def test_a_runner_that_is_forgotten_ends_its_child(fake: Fake) -> None:
    runner = fake.open()
    pid = pid_of(runner)
    fake.runners.clear()
    del runner
    wait_until_gone(pid)


def test_no_descriptor_is_left(fake: Fake) -> None:
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for fault in (None, "abort", "hang"):
        fake.behave(fault)
        runner = fake.open(step_timeout=0.3 if fault == "hang" else 60.0)
        seq = runner.open()
        if fault is None:
            step(runner, seq, [1])
        else:
            with pytest.raises(BackendProcessError):
                step(runner, seq, [1])
        runner.close()
        fake.runners.clear()
        del runner
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before


def test_the_working_directory_is_not_searched(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.folder / "numpy.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(fake.folder)
    monkeypatch.setenv("PYTHONPATH", str(fake.folder))  # of our Python, not of the other
    runner = fake.open()
    assert step(runner, runner.open(), [1]).argmax() == 2
    assert sys.executable != fake.python
