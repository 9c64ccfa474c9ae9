"""Wakes threads and event loops that wait for something, without ever making the one who rings wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Bell"]


class Bell:
    """Whoever waits hears every ring; ringing takes no lock, so nobody who waits can hold it up.

    A condition variable would: Ctrl-C may leave its lock taken by a thread that waits, and the thread that computes for
    everybody would stop there. What is done to the dictionary is one instruction each.
    """

    def __init__(self) -> None:
        self._sleepers: dict[object, Callable[[], object]] = {}

    def ring(self) -> None:
        """Wake everybody who waits now, and nobody who begins to wait meanwhile."""
        for sleeper in self._now():
            wake = self._sleepers.pop(sleeper, None)
            if wake is not None:  # else another thread rings as well
                wake()

    def _now(self) -> list[object]:
        while True:
            try:
                return list(self._sleepers)
            except RuntimeError:  # a collection of garbage came in between, and with it another thread
                continue

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Sleep until ``ready`` or for ``timeout`` seconds; return whether it is ready."""
        end = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = -1.0 if end is None else min(end - time.monotonic(), threading.TIMEOUT_MAX)
            if end is not None and left <= 0:
                return False
            gate = threading.Lock()
            gate.acquire()
            self._sleepers[gate] = gate.release
            try:
                if ready():  # rung between the first look and the line above
                    return True
                gate.acquire(timeout=left)
            finally:
                self._sleepers.pop(gate, None)
        return True

    def call(self, callback: Callable[[], object], ready: Callable[[], bool]) -> None:
        """Call ``callback`` once, at the next ring or, if it is ready already, soon; from any thread.

        What it raises goes to ``threading.excepthook``: it must not stop the thread that rings.
        """

        def wake() -> None:
            try:
                callback()
            except Exception as error:
                threading.excepthook(
                    threading.ExceptHookArgs(
                        (type(error), error, error.__traceback__, threading.current_thread())
                    )
                )

        self._sleepers[wake] = wake
        if ready():
            self.ring()
