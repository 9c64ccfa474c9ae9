"""Ctrl-C after a few lines that must not be cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["deferred"]

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def deferred() -> Iterator[None]:
    """Put the program's own reaction to Ctrl-C off until the block is done.

    Python runs signal handlers between any two instructions of the main thread, so KeyboardInterrupt could come between
    noting that a thread exists and starting it. In other threads, and where the program's handler is not one of
    Python's, this does nothing.
    """
    handler = _handler()
    if handler is None:
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[-1])


def _handler() -> Handler | None:
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGINT)
    return handler if callable(handler) else None
