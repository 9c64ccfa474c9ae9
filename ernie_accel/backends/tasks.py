"""A base for engines whose requests are tasks of one event loop: what is left to write is one answer, in pieces."""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import itertools
import math
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.engine import EngineInfo, Request, StepProfile, alternative_seed, closed, late
from ernie_accel.backends.feed import Feed, Piece, Tally
from ernie_accel.backends.handle import RequestHandle
from ernie_accel.bell import Bell
from ernie_accel.errors import (
    BackendError,
    ContextLengthError,
    ErnieAccelError,
    QueueFullError,
    UnsupportedError,
)
from ernie_accel.metrics import Metrics
from ernie_accel.types import Score

__all__ = ["TaskEngine"]

T = TypeVar("T")

_TIMEOUTS = TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError
"""One class from Python 3.11 on."""

CLOSING_SECONDS = 10.0
"""How long ``close`` waits for tasks that were cancelled."""


class TaskEngine(ABC):
    """An ``Engine`` over something that schedules and batches by itself: a server, or a library in another process.

    A subclass writes ``pieces``; ``refuse`` says what it cannot do, ``held`` what goes on after a cancel, ``shut``
    gives back what it holds. Everything else is here: alternatives, a bounded queue with priorities, deadlines,
    cancelling, metrics. One thread runs the event loop; it begins with the engine and ends with ``close`` or with the
    last reference.

    Args:
        info: Fixed properties.
        concurrency: Most completions that are under way at a time; further ones wait here.
        queue_size: Most that wait.
    """

    def __init__(self, info: EngineInfo, *, concurrency: int, queue_size: int = 1024) -> None:
        self._info = info
        self._concurrency = concurrency
        self._queue_size = queue_size
        self._tally = Tally()
        self._room = Bell()
        self._entering = threading.Lock()
        self._queued: dict[Feed, None] = {}  # all that wait for their start
        self._waiting: list[tuple[int, int, Feed]] = []
        self._tasks: dict[Feed, asyncio.Task[None]] = {}
        self._ending: set[Feed] = set()
        self._arrivals = itertools.count()
        self._process = os.getpid()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name=f"ernie_accel {info.backend}", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, _stop, self._loop, self._thread)

    @abstractmethod
    def pieces(self, request: Request, seed: int) -> AsyncGenerator[Piece, None]:
        """Give one completion as it comes; the last piece has a finish reason.

        Runs in the event loop. Raise an ErnieAccelError for what goes wrong. Where the caller cancels or the deadline
        is over, the generator is closed at its ``yield`` or its ``await``, and should end the work there.
        """

    def refuse(self, request: Request) -> None:
        """Raise UnsupportedError or ArgumentError for what cannot be expressed; before anything is queued."""
        return

    def held(self) -> int:
        """Count the places that the other side still needs for completions that were cancelled here.

        They are none for others. When there are fewer, call ``admit``. In the event loop.
        """
        return 0

    async def shut(self) -> None:
        """Give back what the subclass holds; in the event loop, once."""
        return

    @property
    def info(self) -> EngineInfo:
        """Fixed properties."""
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of ``info``."""
        return self._info.capabilities

    def submit(self, request: Request, *, block: bool = True) -> RequestHandle[Feed]:
        """Queue a request; where the queue is full, wait for room or, without ``block``, raise QueueFullError."""
        return self.submit_all([request], block=block)[0]

    def submit_all(self, requests: Sequence[Request], *, block: bool = True) -> list[RequestHandle[Feed]]:
        """Queue requests that begin together, as far as the queue has room for them at a time."""
        for request in requests:
            self.check(request.token_ids)
            self.refuse(request)
        handles = [self._handle(request) for request in requests]
        try:
            self._queue([feed for handle in handles for feed in handle.writers], block)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def notify_room(self, request: Request, callback: Callable[[], object]) -> None:
        """Call back once, from any thread, when the queue may have room for a request."""
        self._room.call(callback, lambda: self._has_room(request.params.n))

    def check(self, token_ids: Sequence[int]) -> None:
        """Raise ContextLengthError if a prompt is longer than the context, ClosedError if the engine was closed."""
        self._check_open()
        most = self._info.max_context
        if len(token_ids) > most:
            raise ContextLengthError(
                f"{len(token_ids)} tokens do not fit the context of {most}: shorten the prompt, or start "
                f"{self._info.backend!r} with a larger one"
            )

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Raise UnsupportedError."""
        self._lacks("gives no logits")

    def score(self, texts: Sequence[Sequence[int]]) -> list[Score]:
        """Raise UnsupportedError."""
        self._lacks("does not score texts")

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Raise UnsupportedError."""
        self._lacks("gives no hidden states")

    def profile(self, on: bool) -> StepProfile:
        """Raise UnsupportedError."""
        self._lacks("does not tell where its time goes")

    def clear_cache(self) -> None:
        """Raise UnsupportedError."""
        self._lacks("manages its cache itself and offers no way to clear it")

    def metrics(self) -> Metrics:
        """Return what was counted here since the engine was made, and how many requests wait and run."""
        self._check_open()
        return self._tally.snapshot({"waiting": len(self._queued), "running": len(self._tasks)})

    def close(self) -> None:
        """End everything that is under way with ClosedError, and give back what is held."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self.ask(self._shutdown(), CLOSING_SECONDS)
        _stop(self._loop, self._thread)
        self._room.ring()

    def ask(self, answer: Coroutine[Any, Any, T], timeout: float) -> T | None:
        """Run a coroutine in the event loop and wait for its result; None if that takes longer than ``timeout``."""
        if threading.current_thread() is self._thread:
            answer.close()
            raise BackendError("this was called in the engine's own thread, which cannot wait for itself")
        future = asyncio.run_coroutine_threadsafe(answer, self._loop)
        try:
            return future.result(timeout)
        except _TIMEOUTS:
            future.cancel()
            return None

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """End everything that waits or is under way with an error, one for each; in the event loop."""
        for feed in [*self._queued, *self._tasks]:
            feed.fail(error())
        self._cancel(list(self._queued))
        self._cancel(list(self._tasks))

    def _lacks(self, what: str) -> NoReturn:
        self._check_open()
        raise UnsupportedError(
            f"backend {self._info.backend!r} {what}; backends 'native' and 'reference' do, given the checkpoint"
        )

    def _handle(self, request: Request) -> RequestHandle[Feed]:
        seed, largest = request.params.seed or 0, self._info.max_seed
        feeds = [
            Feed(request, alternative_seed(seed, index, largest), self._tally, index)
            for index in range(request.params.n)
        ]
        return RequestHandle(feeds, partial(_send, self._loop, weakref.WeakMethod(self._cancel)), self._check)

    def _queue(self, feeds: Sequence[Feed], block: bool) -> None:
        at = 0
        while at < len(feeds):
            with self._entering:
                room = (
                    self._queue_size - len(self._queued) if block else len(feeds) * self._has_room(len(feeds))
                )
                entering = feeds[at : at + max(0, room)]
                self._queued.update(dict.fromkeys(entering))
            if entering:
                _send(self._loop, weakref.WeakMethod(self._add), entering)
                at += len(entering)
            elif block:
                deadline = feeds[at].request.deadline
                left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                if not self._room.wait(self._has_room, left):
                    raise late()
                self._check_open()
            else:
                raise QueueFullError(
                    f"{len(self._queued)} requests wait already, and queue_size is {self._queue_size}: try again "
                    "later, or load the model with EngineOptions(queue_size=...)"
                )

    def _has_room(self, count: int = 1) -> bool:
        """Whether so many may enter together; more than the queue holds only if nobody waits, or they never could."""
        queued = len(self._queued)
        return self._closed or not queued or queued + count <= self._queue_size

    def _add(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            if self._closed:
                feed.fail(closed())
            elif feed.request.deadline <= time.monotonic():
                feed.fail(late())
            if feed.done:
                self._queued.pop(feed, None)
                continue
            heapq.heappush(self._waiting, (-feed.request.priority, next(self._arrivals), feed))
            if feed.request.deadline < math.inf:
                left = max(0.0, feed.request.deadline - time.monotonic())
                ring = partial(_send, self._loop, weakref.WeakMethod(self._late), [feed])
                timer = self._loop.call_later(left, ring)
                feed.ended.call(partial(_drop, self._loop, timer), lambda f=feed: f.done)  # type: ignore[misc]
        self.admit()

    def admit(self) -> None:
        """Start what waits, as far as there is room; in the event loop."""
        while self._waiting and len(self._tasks) + self.held() < self._concurrency:
            feed = heapq.heappop(self._waiting)[2]
            self._queued.pop(feed, None)
            if not feed.done:
                task = self._tasks[feed] = self._loop.create_task(self._work(feed))
                task.add_done_callback(
                    partial(self._left, feed)
                )  # also of one that never came to its first line
        self._room.ring()

    async def _work(self, feed: Feed) -> None:
        feed.start()
        try:
            async with aclosing(self.pieces(feed.request, feed.seed)) as pieces:
                async for piece in pieces:
                    if feed.add(piece):
                        break
            feed.fail(BackendError(f"backend {self._info.backend!r} ended an answer without saying why"))
        except ErnieAccelError as error:
            feed.fail(error)
        except Exception as error:  # whatever a library raises ends one request
            feed.fail(_wrapped(self._info.backend, error))

    def _left(self, feed: Feed, task: asyncio.Task[None]) -> None:
        del self._tasks[feed]
        self._ending.discard(feed)
        feed.cancel()  # unless it has ended already
        self.admit()

    def _cancel(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            feed.cancel()  # at once, whatever its task does about it
            self._queued.pop(feed, None)
            task = self._tasks.get(feed)
            if task is not None and feed not in self._ending:
                self._ending.add(feed)  # a second time would disturb what the first has it clean up
                task.cancel()
        self._room.ring()

    def _late(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            feed.fail(late())
        self._cancel(feeds)

    async def _shutdown(self) -> None:
        self.fail_all(closed)
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS / 2)
        await self.shut()

    def _check(self) -> None:
        if self._process != os.getpid():
            raise BackendError(
                "this process was forked from the one that loaded the model, and the thread that talks to the backend "
                "does not exist here: load the model in this process"
            )

    def _check_open(self) -> None:
        self._check()
        if self._closed:
            raise closed()


def _wrapped(name: str, error: Exception) -> BackendError:
    wrapped = BackendError(f"backend {name!r} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _send(
    loop: asyncio.AbstractEventLoop, method: weakref.WeakMethod[Callable[[Any], None]], feeds: Sequence[Feed]
) -> None:
    """Have the loop call a method, if its engine still is; from any thread, finalizers included."""

    def call() -> None:
        function = method()
        if function is not None:
            function(feeds)
        else:
            for feed in feeds:
                feed.cancel()

    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop has ended, and everything in it
        for feed in feeds:
            feed.fail(closed())


def _drop(loop: asyncio.AbstractEventLoop, timer: asyncio.TimerHandle) -> None:
    try:
        loop.call_soon_threadsafe(timer.cancel)
    except RuntimeError:
        return


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        _let_end(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        _let_end(loop)  # the loop has begun a task for each generator that was dropped
        loop.close()


def _let_end(loop: asyncio.AbstractEventLoop) -> None:
    """Wait for the tasks of a loop, those included that are about to begin."""
    loop.run_until_complete(asyncio.sleep(0))
    tasks = asyncio.all_tasks(loop)
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=CLOSING_SECONDS / 2))


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    try:
        loop.call_soon_threadsafe(loop.stop)
    except RuntimeError:
        return
    if thread is not threading.current_thread():
        thread.join(CLOSING_SECONDS)
