"""Wakes threads and event loops that wait for something, without ever making the one who rings wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Bell"]


class Bell:
    """Whoever waits hears every ring; ringing takes no lock, so nobody who waits can hold it up.

    A condition variable would: Ctrl-C may leave its lock taken by a thread that waits, and the thread that computes for
    everybody would stop there.
    """

    def __init__(self) -> None:
        self._sleepers: deque[Callable[[], object]] = deque()

    def ring(self) -> None:
        """Wake everybody who waits now."""
        while self._sleepers:
            try:
                wake = self._sleepers.popleft()
            except IndexError:  # another thread rings as well
                return
            wake()

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Sleep until ``ready`` or for ``timeout`` seconds; return whether it is ready."""
        end = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = -1.0 if end is None else min(end - time.monotonic(), threading.TIMEOUT_MAX)
            if end is not None and left <= 0:
                return False
            gate = threading.Lock()
            gate.acquire()
            self._sleepers.append(gate.release)
            if ready():  # rung between the first look and the line above
                return True
            gate.acquire(timeout=left)
        return True

    def call(self, callback: Callable[[], object], ready: Callable[[], bool]) -> None:
        """Call ``callback`` once, at the next ring or, if it is ready already, soon; from any thread."""
        self._sleepers.append(callback)
        if ready():
            self.ring()
