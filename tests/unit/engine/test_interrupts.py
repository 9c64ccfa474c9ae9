"""Real Ctrl-C, at any moment: nothing may be lost, stuck or changed."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import ernie_accel as ea
from ernie_accel.engine.request import Request
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.types import SamplingParams


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """A process that was started in the background ignores Ctrl-C; here it must mean what it means in a terminal.

    What other tests leave in ``gc.callbacks`` (Hypothesis does) would swallow one that comes during a collection.
    """
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks
    signal.signal(signal.SIGINT, old)


def ask(max_tokens: int = 12) -> Request:
    params = SamplingParams(max_tokens=max_tokens, seed=5, temperature=0.0, n=2)
    return Request(token_ids=(1, 2, 3), params=params)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_request_is_taken_back_if_nobody_gets_its_handle(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with ea.Model.load(synthetic(tiny_config()), backend="mock") as model:
        engine = model._engine
        worker = engine._worker  # type: ignore[attr-defined]
        send = worker.send

        def send_and_interrupt(command: Callable[[], None]) -> None:
            monkeypatch.undo()
            if moment == "after":
                send(command)
            raise KeyboardInterrupt

        monkeypatch.setattr(worker, "send", send_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.submit(ask(max_tokens=10**6))
        assert engine.metrics().gauges["running"] == 0
        assert not engine._scheduler.queued  # type: ignore[attr-defined]


def hammer(model: ea.Model, rounds: int) -> int:
    """Interrupt ``rounds`` requests, each at a random moment; return how many of them noticed."""
    main, chance = threading.main_thread().ident, random.Random(1)
    assert main is not None
    noticed = 0
    for _ in range(rounds):
        over = threading.Event()

        def strike(over: threading.Event = over) -> None:
            time.sleep(chance.uniform(0.0, 0.003))
            signal.pthread_kill(main, signal.SIGINT)
            over.set()

        thread = threading.Thread(target=strike)
        try:
            thread.start()
            while not over.is_set():
                model.generate([1, 2, 3], max_tokens=8, n=2, seed=5)
            over.wait()
        except KeyboardInterrupt:
            noticed += 1
        thread.join()
    return noticed


@pytest.mark.parametrize("others", [0, 2])
def test_ctrl_c_at_any_moment(others: int) -> None:
    with ea.Model.load(synthetic(tiny_config()), backend="mock") as model:
        wanted = model.generate([9], max_tokens=10, seed=3).token_ids
        wrong: list[object] = []
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                got = model.generate([9], max_tokens=10, seed=3).token_ids
                if got != wanted:
                    wrong.append(got)

        threads = [threading.Thread(target=work) for _ in range(others)]
        for thread in threads:
            thread.start()
        assert hammer(model, 200) == 200
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert model.generate([9], max_tokens=10, seed=3).token_ids == wanted
        gauges = model._engine.metrics().gauges
        assert (gauges["kv_used_tokens"], gauges["running"], gauges["waiting"]) == (0, 0, 0)
