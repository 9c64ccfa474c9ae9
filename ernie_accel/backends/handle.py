"""A request under way as its caller holds it, over whatever its completions are written by."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from typing_extensions import Self

from ernie_accel.bell import Bell
from ernie_accel.errors import ArgumentError, DeadlineError
from ernie_accel.types import Chunk, Completion

__all__ = ["RequestHandle", "Writing", "Written"]

Cancel = Callable[[Sequence[Any]], None]
"""Ends completions, given as the handle was given them."""


class Written(Protocol):
    """What a completion has so far, in pieces."""

    @property
    def count(self) -> int:
        """Tokens that readers may see."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it ended, None before."""
        ...

    def chunks(self) -> int:
        """Return how many chunks there are so far."""
        ...

    def chunk(self, index: int) -> Chunk | None:
        """Return chunk ``index``, None if it is not there yet."""
        ...


class Writing(Protocol):
    """One completion that is being written; ``progress`` is rung with each piece, ``ended`` at the end."""

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        ...

    @property
    def error(self) -> BaseException | None:
        """Why it failed, None if it didn't."""
        ...

    @property
    def output(self) -> Written:
        """What it has written."""
        ...

    @property
    def progress(self) -> Bell:
        """Rung when there is more, and at the end."""
        ...

    @property
    def ended(self) -> Bell:
        """Rung at the end."""
        ...

    def completion(self) -> Completion:
        """Return what was written so far; whole once it is done."""
        ...


W = TypeVar("W", bound=Writing)


class RequestHandle(Generic[W]):
    """One request. Dropping it cancels the request and frees its memory.

    Attributes:
        writers: Of its alternatives, the first at first.
    """

    def __init__(self, writers: Sequence[W], cancel: Cancel, check: Callable[[], None]) -> None:
        self.writers = writers
        self._cancel = cancel
        self._check = check
        self._taking = threading.Lock()
        self._taken = 0
        self._result: Completion | None = None
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

    def __iter__(self) -> Self:
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
        with self._taking:
            if self._result is None:  # what it says of memory would be another thing later
                first, *others = (writer.completion() for writer in self.writers)
                self._result = replace(first, alternatives=tuple(others))
            return self._result

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


def _abandon(writers: Sequence[Writing], cancel: Cancel) -> None:
    if not all(writer.done for writer in writers):
        cancel(writers)
