"""Ctrl-C at the wrong moment is put off, and comes all the same."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from ernie_accel.interrupts import deferred


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """A process that was started in the background ignores Ctrl-C; here it must mean what it means in a terminal."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_comes_after_the_block() -> None:
    done = []

    def block() -> None:
        with deferred():
            interrupt()
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done


def test_the_programs_own_handler_is_called_and_stays() -> None:
    calls: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        mine = signal.getsignal(signal.SIGINT)
        with deferred():
            interrupt()
            interrupt()
            assert not calls
        assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_and_foreign_handlers_are_left_alone() -> None:
    def look() -> None:
        with deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        look()
    finally:
        signal.signal(signal.SIGINT, old)
    assert seen == [old, signal.SIG_IGN]
