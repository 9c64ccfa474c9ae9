"""Our own engine: whole requests on one Runner, batched by a thread that steps while there is anything to do."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Runner, RunnerInfo, StepProfile
from ernie_accel.backends.capabilities import Profiles
from ernie_accel.backends.engine import closed
from ernie_accel.backends.handle import RequestHandle
from ernie_accel.engine.job import Job
from ernie_accel.engine.metrics import Metrics, Recorder
from ernie_accel.engine.multi_token import MultiToken
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.reader import EmbedReader, LogitsReader, Reader, ScoreReader
from ernie_accel.engine.request import Request, late
from ernie_accel.engine.scheduler import Scheduler
from ernie_accel.engine.speculation import Speculation
from ernie_accel.engine.worker import Worker
from ernie_accel.engine.writer import Limits, Writer
from ernie_accel.errors import ArgumentError, ContextLengthError, QueueFullError, UnsupportedError
from ernie_accel.stop import Decoder
from ernie_accel.types import Score

__all__ = ["LocalEngine"]

READ_AHEAD = 256
"""Most texts of one call that wait to be read: enough for every batch, and others need not wait for all of them."""

MOST_COMPLETIONS = 1024
"""Of one prompt, unless the queue holds more: each takes memory before anything is computed."""


class LocalEngine:
    """The ``Engine`` over a Runner, which it owns from here on.

    Its methods may be called from any thread; what they start is computed by one thread of its own, which ends with
    ``close`` or with the last reference to the engine.

    Args:
        runner: What computes.
        decoder: Makes the incremental detokeniser of one request; None gives results without text.
        vocab_limit: Ids from here on are padding rows of the vocabulary and never drawn; 0 means there are none.
        options: How requests are batched.

    Raises:
        UnsupportedError: Speculation by multi-token prediction, and the Runner has none.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        decoder: Callable[[], Decoder] | None = None,
        vocab_limit: int = 0,
        options: EngineOptions | None = None,
    ) -> None:
        self._runner = runner
        self._info = runner.info
        self._decoder = decoder
        self._options = options or EngineOptions()
        self._limits = Limits(
            max_context=runner.info.max_context,
            vocab_limit=min(vocab_limit, runner.info.vocab_size),
            selects="select" in runner.info.capabilities,
        )
        self._recorder = Recorder()
        self._speculation = _speculation(runner, self._options)
        self._scheduler = Scheduler(runner, self._options, self._recorder, self._speculation)
        self._worker = Worker(self._scheduler, f"ernie_accel {runner.info.backend}")
        self._cancel = partial(_cancel, self._worker, self._scheduler)
        self._entering = threading.Lock()
        self._closed = False
        weakref.finalize(
            self, self._worker.stop
        ).atexit = False  # the thread has a finalizer of its own for that

    @property
    def info(self) -> RunnerInfo:
        """Fixed properties of the Runner."""
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        """The Runner's capabilities, and what any Runner makes possible."""
        return self._info.capabilities | {"logits", "score"}

    def submit(self, request: Request, *, block: bool = True) -> RequestHandle[Writer]:
        """Queue a request; where the queue is full, wait for room or, without ``block``, raise QueueFullError."""
        return self.submit_all([request], block=block)[0]

    def submit_all(self, requests: Sequence[Request], *, block: bool = True) -> list[RequestHandle[Writer]]:
        """Queue requests that begin together, as far as the queue has room for them at a time."""
        handles = [self._handle(request) for request in requests]
        try:
            self._queue([writer for handle in handles for writer in handle.writers if not writer.done], block)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def notify_room(self, request: Request, callback: Callable[[], object]) -> None:
        """Call back once, from any thread, when the queue may have room for a request."""
        self._scheduler.room.call(callback, lambda: self._has_room(request.params.n))

    def _handle(self, request: Request) -> RequestHandle[Writer]:
        self.check(request.token_ids)
        most = max(MOST_COMPLETIONS, self._options.queue_size)
        if request.params.n > most:
            raise ArgumentError(
                f"n={request.params.n}: must be at most {most}; ask again for more, or load the model with "
                "EngineOptions(queue_size=...)"
            )
        writers = [
            Writer(request, self._limits, self._decoder() if self._decoder else None, self._recorder, index)
            for index in range(request.params.n)
        ]
        for writer in writers[1:]:
            writer.follow(writers[0])
        if self._speculation is not None:
            for writer in writers:
                writer.speculate(self._speculation)
        return RequestHandle(writers, self._cancel, self._check_process)

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return raw logits, float32 [T, vocab_size]."""
        self.check(token_ids)
        reader = LogitsReader(token_ids, self._info.vocab_size)
        self._read([reader])
        return reader.logits

    def score(self, texts: Sequence[Sequence[int]]) -> list[Score]:
        """Return for each text the log-probability of each id given those before it."""
        for text in texts:
            self.check(text)
        readers = [ScoreReader(text) for text in texts]
        self._read(readers)
        return [reader.score for reader in readers]

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return float32 [n, hidden_size]: the mean hidden state of each text, of length 1."""
        if "hidden" not in self.capabilities:
            raise UnsupportedError(
                f"backend {self._info.backend!r} gives no hidden states; backends 'native' and 'reference' do"
            )
        for text in texts:
            self.check(text)
        readers = [EmbedReader(text, self._info.hidden_size) for text in texts]
        self._read(readers)
        vectors = np.empty((len(texts), self._info.hidden_size), np.float32)
        for vector, reader in zip(vectors, readers, strict=True):
            vector[:] = reader.embedding
        return vectors

    def profile(self, on: bool) -> StepProfile:
        """Begin or end counting where the time of steps goes, and return what was counted since the last call.

        Raises:
            UnsupportedError: The Runner does not count.
        """
        runner = self._runner
        if not isinstance(runner, Profiles) or "profile" not in self.capabilities:
            raise UnsupportedError(
                f"backend {self._info.backend!r} does not tell where its time goes; use 'native'"
            )
        self._check_open()
        return self._worker.call(lambda: runner.profile(on))

    def metrics(self) -> Metrics:
        """Return what was counted since the model was loaded, and the state between two steps."""
        self._check_open()
        return self._worker.call(lambda: self._recorder.snapshot(self._scheduler.gauges()))

    def clear_cache(self) -> None:
        """Free the KV cache that ended requests have left for later ones."""
        self._check_open()
        self._worker.call(self._scheduler.clear_cache)

    def close(self) -> None:
        """Close the Runner between two steps; whoever waits for something gets ClosedError."""
        self._closed = True
        self._worker.close()

    def _queue(self, jobs: Sequence[Job], block: bool) -> None:
        """Hand jobs to the scheduler, all at once where the queue has room for them."""
        scheduler, most, at = self._scheduler, self._options.queue_size, 0
        while at < len(jobs):
            with self._entering:
                room = most - len(scheduler.queued) if block else len(jobs) * self._has_room(len(jobs))
                entering = jobs[at : at + max(0, room)]
                scheduler.queued.update(dict.fromkeys(entering))
            if entering:
                self._worker.send(partial(scheduler.add, entering))
                at += len(entering)
            elif block:
                deadline = min(job.deadline for job in jobs[at:])
                left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                if not scheduler.room.wait(self._has_room, left):
                    raise late()
                self._check_open()
            else:
                raise QueueFullError(
                    f"{len(scheduler.queued)} requests wait already, and queue_size is {most}: try again later, or "
                    "load the model with EngineOptions(queue_size=...)"
                )

    def _has_room(self, count: int = 1) -> bool:
        """Whether so many may enter together; more than the queue holds only if nobody waits, or they never could."""
        queued = len(self._scheduler.queued)
        return self._closed or not queued or queued + count <= self._options.queue_size

    def _read(self, readers: Sequence[Reader]) -> None:
        sent = 0
        try:
            for index, reader in enumerate(readers):
                more = readers[sent : index + READ_AHEAD]
                if more:
                    self._worker.send(partial(self._scheduler.add, more))
                    sent += len(more)
                reader.ended.wait(lambda r=reader: r.done)  # type: ignore[misc]
                if reader.error is not None:
                    raise reader.error
        except BaseException:
            self._cancel(readers)
            raise

    def check(self, token_ids: Sequence[int]) -> None:
        """Raise ContextLengthError if a prompt is longer than the context, ClosedError if the engine was closed."""
        self._check_open()
        if len(token_ids) > self._limits.max_context:
            raise ContextLengthError(
                f"{len(token_ids)} tokens do not fit the context of {self._limits.max_context}: shorten the prompt, "
                "or load the model with a larger max_context if it was trained for one"
            )

    def _check_process(self) -> None:
        """Of the engine and not of its worker, so that a handle keeps the engine alive."""
        self._worker.check_process()

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise closed()


def _speculation(runner: Runner, options: EngineOptions) -> Speculation | None:
    if options.speculation == "mtp":
        return MultiToken(runner)
    return Speculation() if options.speculation == "lookup" else None


def _cancel(worker: Worker, scheduler: Scheduler, jobs: Sequence[Job]) -> None:
    """End jobs within one step; from any thread, finalizers included. Knows no engine, so that one can end."""
    worker.send(partial(scheduler.cancel, jobs))
