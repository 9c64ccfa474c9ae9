"""A request of our own engine, as its caller holds it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

from ernie_accel.engine.job import Job
from ernie_accel.engine.writer import Writer
from ernie_accel.errors import ArgumentError, DeadlineError
from ernie_accel.types import Chunk, Completion

__all__ = ["LocalHandle"]

Cancel = Callable[[Sequence[Job]], None]


class LocalHandle:
    """One request of a LocalEngine. Dropping it cancels the request and frees its memory.

    Attributes:
        writers: Of its alternatives, the first at first.
    """

    def __init__(self, writers: Sequence[Writer], cancel: Cancel, check: Callable[[], None]) -> None:
        self.writers = writers
        self._cancel = cancel
        self._check = check
        self._taking = threading.Lock()
        self._taken = 0
        weakref.finalize(self, _abandon, writers, cancel).atexit = False

    @property
    def done(self) -> bool:
        """Whether all alternatives have ended, well or not."""
        return all(writer.done for writer in self.writers)

    @property
    def exhausted(self) -> bool:
        """Whether every chunk was taken; never after a failure, which ``take`` raises instead."""
        first = self.writers[0]
        return first.done and first.error is None and self._taken >= first.output.chunks()

    def take(self) -> Chunk | None:
        """Return the next piece of the first alternative if there is one now; after the last, raise a failure."""
        with self._taking:
            chunk = self.writers[0].output.chunk(self._taken)
            self._taken += chunk is not None
        if chunk is None:
            self._raise()
        return chunk

    def __repr__(self) -> str:
        first = self.writers[0]
        ended = "failed" if first.error is not None else first.output.reason or "cancelled"
        return f"<Handle: {first.output.count} tokens, {ended if self.done else 'not at its end'}>"

    def __iter__(self) -> LocalHandle:
        return self

    def __next__(self) -> Chunk:
        """Wait for the next piece of the first alternative."""
        first = self.writers[0]
        while True:
            chunk = self.take()
            if chunk is not None:
                return chunk
            if self.exhausted:
                raise StopIteration
            self._wait(lambda: first.progress.wait(self._has_news))

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end of all alternatives."""
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise ArgumentError(f"timeout={timeout!r}: must be None or a number of seconds")
        end = None if timeout is None else time.monotonic() + timeout
        for writer in self.writers:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self._wait(lambda w=writer, t=left: w.ended.wait(lambda: w.done, t)):  # type: ignore[misc]
                raise DeadlineError(
                    f"no result within {timeout} s; the request goes on: wait again, or cancel it"
                )
        self._raise()
        first, *others = (writer.completion() for writer in self.writers)
        return replace(first, alternatives=tuple(others))

    def cancel(self) -> None:
        """End the request within one step."""
        self._cancel(self.writers)

    def notify(self, callback: Callable[[], object], *, done: bool = False) -> None:
        """Call back once, from any thread, when ``take`` has news; with ``done``, when an alternative has ended."""
        first = self.writers[0]
        if not done:
            first.progress.call(callback, self._has_news)
            return
        waited_for = next((writer for writer in self.writers if not writer.done), first)
        waited_for.ended.call(callback, lambda: waited_for.done)

    def _has_news(self) -> bool:
        first = self.writers[0]
        return first.done or self._taken < first.output.chunks()

    def _wait(self, wait: Callable[[], bool]) -> bool:
        """Wait; what interrupts that, such as Ctrl-C, ends the request."""
        self._check()
        try:
            return wait()
        except BaseException:
            self.cancel()
            raise

    def _raise(self) -> None:
        for writer in self.writers:
            if writer.error is not None:
                self.cancel()
                raise writer.error


def _abandon(writers: Sequence[Writer], cancel: Cancel) -> None:
    if not all(writer.done for writer in writers):
        cancel(writers)
