"""The thread that computes: how it begins and ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import ernie_accel as ea
from ernie_accel.engine.request import Request
from ernie_accel.engine.worker import Worker

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]


class Counter:
    """Work that is done after three steps."""

    def __init__(self) -> None:
        self.steps = self.closed = 0
        self.thread = 0

    @property
    def idle(self) -> bool:
        return self.steps >= 3

    def step(self) -> None:
        self.steps += 1
        self.thread = threading.get_ident()

    def close(self) -> None:
        self.closed += 1


def wait_until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_thread_steps_while_there_is_work_and_obeys_between() -> None:
    work = Counter()
    worker = Worker(work, "test")
    assert worker.call(lambda: 5) == 5
    wait_until(lambda: work.idle)
    assert worker.call(threading.get_ident) == work.thread != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    worker.close()
    worker.close()
    assert work.closed == 1


def test_commands_after_the_end_are_carried_out() -> None:
    worker = Worker(Counter(), "test")
    worker.close()
    assert worker.call(lambda: 7) == 7


def test_work_that_fails_is_closed_and_nobody_hangs(capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(Counter):
        def step(self) -> None:
            raise ValueError("broken")

    work = Failing()
    worker = Worker(work, "test")
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        worker.send(lambda: None)
        wait_until(lambda: work.closed == 1)
    finally:
        threading.excepthook = hook
    assert worker.call(lambda: 1) == 1


def test_a_system_without_threads_is_an_error_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = Worker(Counter(), "test")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(ea.CapacityError, match="starts no thread to compute in"):
                worker.call(lambda: 1)
    assert worker.call(lambda: 2) == 2
    worker.close()


def test_a_command_that_fails_is_reported_and_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    work = Counter()
    worker = Worker(work, "test")
    for _ in range(2):
        worker.send(lambda: 1 // 0)  # type: ignore[arg-type]
    assert worker.call(threading.get_ident) != threading.get_ident()
    assert (reported, work.closed) == ([ZeroDivisionError] * 2, 0)
    worker.close()
    worker.send(lambda: 1 // 0)  # type: ignore[arg-type]
    assert len(reported) == 3


def computing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ernie_accel")]


def test_the_thread_ends_with_the_engine(bench: Bench, request_of: Ask) -> None:
    before = len(computing())
    engine = bench.engine(reply="ab")
    assert len(computing()) == before  # nothing was asked for yet
    engine.submit(request_of()).result()
    assert len(computing()) == before + 1
    del engine
    del bench._engine
    gc.collect()
    wait_until(lambda: len(computing()) == before)
    assert bench.runner._closed


PROGRAM = """
import ernie_accel as ea
from ernie_accel.testing import synthetic, tiny_config
model = ea.Model.load(synthetic(tiny_config()), backend="{backend}")
stream = model.stream([1, 2, 3], max_tokens=400, ignore_eos=True)
next(stream)
{end}
"""


@pytest.mark.parametrize("backend", ["mock", "native"])
@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "model.close()"])
def test_a_program_ends_while_a_request_is_under_way(backend: str, end: str) -> None:
    code = PROGRAM.format(backend=backend, end=end)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_model_can_be_closed_by_whoever_computes_for_it() -> None:
    """A progress callback or a finalizer may run in the computing thread."""
    model = ea.Model.load(ea.testing.synthetic(ea.testing.tiny_config()), backend="mock")
    model.generate([1, 2], max_tokens=2)
    model._engine._worker.call(model.close)  # type: ignore[attr-defined]
    with pytest.raises(ea.ClosedError):
        model.generate([1, 2])


def test_a_handle_keeps_its_engine_alive(bench: Bench, request_of: Ask) -> None:
    handle = bench.engine(reply="abc").submit(request_of())
    del bench._engine
    gc.collect()
    assert handle.result().text == "abc"
