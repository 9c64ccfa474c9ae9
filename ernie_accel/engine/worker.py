"""The thread that computes: it takes commands between two steps, and steps while there is anything to do."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from ernie_accel.bell import Bell
from ernie_accel.errors import BackendError, CapacityError
from ernie_accel.interrupts import deferred

__all__ = ["Work", "Worker"]

T = TypeVar("T")
Command = Callable[[], None]


class Work(Protocol):
    """What the thread does."""

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        ...

    def step(self) -> None:
        """Advance; what fails is noted where it belongs and not raised."""
        ...

    def close(self) -> None:
        """End everything and give all memory back. Commands may still come afterwards, from any thread."""
        ...


class Worker:
    """Drives one ``Work``, which only its thread touches; everybody else sends commands.

    The thread begins with the first command, so that loading a model starts none, and it knows nothing of the object
    that users hold, whose end can therefore stop it. ``send`` neither waits nor takes a lock that is held while
    anything waits (``SimpleQueue`` is made for that), so finalizers and signal handlers may call it.
    """

    def __init__(self, work: Work, name: str) -> None:
        self._work = work
        self._name = name
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._starting = threading.RLock()  # a finalizer may come in between, in the same thread
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closing = False
        self._ended = False
        self._end = Bell()

    @property
    def lost_by_fork(self) -> bool:
        """Whether this is a forked child of the process in which the thread runs."""
        return self._process != os.getpid()

    def send(self, command: Command) -> None:
        """Have the thread call ``command`` before its next step. In a forked child this does nothing."""
        if self.lost_by_fork:
            return
        self._inbox.put(command)
        if self._thread is None:
            self._start()
        if self._ended:  # nobody else may look any more
            self._obey()

    def call(self, function: Callable[[], T]) -> T:
        """Have the thread call ``function`` between two steps; wait; return what it returns, raise what it raises.

        Raises:
            BackendError: This is a forked child.
        """
        self.check_process()
        if threading.current_thread() is self._thread:
            return function()
        answers: list[T] = []
        errors: list[BaseException] = []
        bell = Bell()

        def run() -> None:
            try:
                answers.append(function())
            except BaseException as error:
                errors.append(error)
            bell.ring()

        self.send(run)
        bell.wait(lambda: bool(answers or errors))
        if errors:
            raise errors[0]
        return answers[0]

    def stop(self) -> None:
        """Have the thread close the work and end, without waiting for that."""
        self.send(self._close)

    def close(self) -> None:
        """Close the work and wait until it is done; harmless if it is."""
        if self.lost_by_fork or self._ended:
            return
        self.stop()
        if threading.current_thread() is not self._thread:
            self._end.wait(lambda: self._ended)

    def check_process(self) -> None:
        """Raise BackendError in a forked child."""
        if self.lost_by_fork:
            raise BackendError(
                "this process was forked from the one that loaded the model, and the thread that computes does not "
                "exist here: load the model in this process"
            )

    def _start(self) -> None:
        with self._starting, deferred():
            # A daemon, so that a program which forgets to close its model can end; the finalizer, which Python runs
            # before it tears such threads down, lets the step that is under way finish.
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            if self._thread is not None:
                return
            self._thread = thread
            try:
                thread.start()
            except RuntimeError as error:
                self._thread = None
                raise CapacityError(
                    f"the system starts no thread to compute in: {error}; end others"
                ) from error
            weakref.finalize(self, _join, self._inbox, weakref.WeakMethod(self._close), thread)

    def _close(self) -> None:
        self._closing = True

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._work.idle:
                    _carry_out(self._inbox.get())
                self._obey()
                if not (self._closing or self._work.idle):
                    self._work.step()
        finally:
            try:
                self._work.close()
            finally:
                self._ended = True
                self._end.ring()
                self._obey()

    def _obey(self) -> None:
        """Call what was sent so far."""
        try:
            while True:
                _carry_out(self._inbox.get_nowait())
        except Empty:
            return


def _carry_out(command: Command) -> None:
    """One command that fails must not end the thread, nor what others wait for."""
    try:
        command()
    except Exception as error:
        args = (type(error), error, error.__traceback__, threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(args))


def _join(inbox: SimpleQueue[Command], close: weakref.WeakMethod[Command], thread: threading.Thread) -> None:
    """At the end of the program, or once the thread has ended: wait for it."""
    if thread.is_alive() and thread is not threading.current_thread():
        command = close()
        if command is not None:
            inbox.put(command)
        thread.join()
