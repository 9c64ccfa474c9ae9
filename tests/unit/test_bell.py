"""Who is woken, how often, and what is left of those who gave up."""

from __future__ import annotations

import threading

import pytest

from ernie_accel.bell import Bell


def never() -> bool:
    return False


def test_who_gave_up_waiting_leaves_nothing_behind() -> None:
    bell = Bell()
    for _ in range(50):
        assert not bell.wait(never, 1e-4)
    assert not bell._sleepers


def test_who_is_interrupted_leaves_nothing_behind() -> None:
    bell, looks = Bell(), iter([False])

    def ready() -> bool:
        if next(looks, True):
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        bell.wait(ready)
    assert not bell._sleepers


def test_a_callback_that_asks_to_be_called_again_waits_for_the_next_ring() -> None:
    bell, calls = Bell(), []

    def callback() -> None:
        calls.append(1)
        assert len(calls) < 10, "called again by the same ring"
        bell.call(callback, never)

    bell.call(callback, never)
    bell.ring()
    assert len(calls) == 1
    bell.ring()
    assert len(calls) == 2


def test_a_callback_that_fails_is_reported_and_the_others_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bell, called, reported = Bell(), [], []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    bell.call(lambda: 1 // 0, never)
    bell.call(lambda: called.append(1), never)
    bell.ring()
    assert (called, reported) == ([1], [ZeroDivisionError])


def test_a_ring_is_heard_although_others_come_and_go_meanwhile() -> None:
    class Restless(dict):  # type: ignore[type-arg]
        looks = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("dictionary changed size during iteration")
            return super().__iter__()

    bell, called = Bell(), []
    bell._sleepers = Restless()
    bell.call(lambda: called.append(1), never)
    bell.ring()
    assert called == [1]


def test_every_ring_is_heard() -> None:
    bell, state = Bell(), [0]

    def count() -> None:
        for _ in range(300):
            state[0] += 1
            bell.ring()

    ringing = threading.Thread(target=count)
    ringing.start()
    for wanted in range(1, 301, 7):
        assert bell.wait(lambda wanted=wanted: state[0] >= wanted, 20)  # type: ignore[misc]
    ringing.join()
    assert not bell._sleepers
