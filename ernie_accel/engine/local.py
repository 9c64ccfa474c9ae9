"""Our own engine: whole requests on one Runner, driven by the threads that wait for results.

There is no background thread. Whoever waits takes a turn, advances everything that is under way by one step, and hands
the turn to the next; so calls from several threads join one batch, and Ctrl-C reaches the caller between two steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Profiles, Runner, RunnerInfo, StepProfile
from ernie_accel.engine.job import Job
from ernie_accel.engine.reader import LogitsReader, Reader, ScoreReader
from ernie_accel.engine.request import Request
from ernie_accel.engine.scheduler import Scheduler
from ernie_accel.engine.stop import Decoder
from ernie_accel.engine.turn import Turn
from ernie_accel.engine.writer import Limits, Writer
from ernie_accel.errors import ClosedError, ContextLengthError, UnsupportedError
from ernie_accel.types import Chunk, Completion, Score

__all__ = ["LocalEngine", "LocalHandle"]


class LocalEngine:
    """The ``Engine`` over a Runner, which it owns from here on.

    Args:
        runner: What computes.
        decoder: Makes the incremental detokeniser of one request; None gives results without text.
        vocab_limit: Ids from here on are padding rows of the vocabulary and never drawn; 0 means there are none.
    """

    def __init__(
        self, runner: Runner, *, decoder: Callable[[], Decoder] | None = None, vocab_limit: int = 0
    ) -> None:
        self._runner = runner
        self._info = runner.info
        self._decoder = decoder
        self._limits = Limits(
            max_context=runner.info.max_context,
            vocab_limit=min(vocab_limit, runner.info.vocab_size),
            selects="select" in runner.info.capabilities,
        )
        self._scheduler = Scheduler(runner)
        self._turn = Turn()
        self._closed = False

    @property
    def info(self) -> RunnerInfo:
        """Fixed properties of the Runner."""
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        """The Runner's capabilities."""
        return self._info.capabilities

    def submit(self, request: Request) -> LocalHandle:
        """Queue a request; it advances while anybody waits for anything."""
        self._check(request.token_ids)
        writers = [
            Writer(request, self._limits, self._decoder() if self._decoder else None, index)
            for index in range(request.params.n)
        ]
        for writer in writers[1:]:
            writer.follow(writers[0])
        handle = LocalHandle(self, writers)  # first: an interrupt that drops it takes the request back
        self._scheduler.add(writer for writer in writers if not writer.done)
        return handle

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return raw logits, float32 [T, vocab_size]."""
        self._check(token_ids)
        reader = LogitsReader(token_ids, self._info.vocab_size)
        self._read(reader)
        return reader.logits

    def score(self, token_ids: Sequence[int]) -> Score:
        """Return the log-probability of each id given those before it."""
        self._check(token_ids)
        reader = ScoreReader(token_ids)
        self._read(reader)
        return reader.score

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
        counted: list[StepProfile] = []

        def switch() -> None:
            self._check_open()
            counted.append(runner.profile(on))

        self._turn.run(switch)
        return counted[0]

    def close(self) -> None:
        """Close the Runner between two steps; whoever waits for something gets ClosedError."""
        self._turn.run(self._close)

    def drive(self, jobs: Sequence[Job], ready: Callable[[], bool]) -> None:
        """Take turns until ``ready``; whatever interrupts the waiting cancels the jobs that were waited for.

        Raises:
            ErnieAccelError: A job failed; ClosedError if the engine was closed.
        """

        def advance() -> None:
            self._check_open()
            if not ready():
                self._scheduler.step()

        try:
            while not ready():
                self._turn.run(advance)
            self._carry_out_cancels()
        except BaseException:
            self.cancel(jobs)
            raise

    def cancel(self, jobs: Iterable[Job]) -> None:
        """End jobs, at once or, while somebody has the turn, with the step that is under way."""
        self._scheduler.cancel(jobs)
        self._carry_out_cancels()

    def _carry_out_cancels(self) -> None:
        """Carry cancels out, unless somebody has the turn: who has it looks again afterwards."""
        while self._scheduler.has_cancels and not self._closed and self._turn.run_if_free(self._reap):
            pass

    def _close(self) -> None:
        self._closed = True
        self._runner.close()

    def _reap(self) -> None:
        if not self._closed:
            self._scheduler.reap()

    def _read(self, reader: Reader) -> None:
        self._scheduler.add([reader])
        self.drive([reader], lambda: reader.done)
        if reader.error is not None:
            raise reader.error

    def _check(self, token_ids: Sequence[int]) -> None:
        self._check_open()
        if len(token_ids) > self._limits.max_context:
            raise ContextLengthError(
                f"{len(token_ids)} tokens do not fit the context of {self._limits.max_context}: shorten the prompt, "
                "or load the model with a larger max_context if it was trained for one"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


class LocalHandle:
    """One request of a LocalEngine. Dropping it cancels the request and frees its memory."""

    def __init__(self, engine: LocalEngine, writers: Sequence[Writer]) -> None:
        self._engine = engine
        self._writers = writers
        weakref.finalize(self, engine.cancel, writers).atexit = False

    def __next__(self) -> Chunk:
        """Return the next piece of the first alternative."""
        writer = self._writers[0]
        while True:
            self._engine.drive(self._writers, lambda: bool(writer.chunks) or writer.done)
            self._raise()
            try:
                return writer.chunks.popleft()
            except IndexError:  # the end; or another thread that reads the same stream was faster
                if writer.done:
                    raise StopIteration from None

    def result(self) -> Completion:
        """Wait for the end of all alternatives."""
        self._engine.drive(self._writers, lambda: all(writer.done for writer in self._writers))
        self._raise()
        first, *others = (writer.completion() for writer in self._writers)
        return replace(first, alternatives=tuple(others))

    def cancel(self) -> None:
        """End the request within one step."""
        self._engine.cancel(self._writers)

    def _raise(self) -> None:
        for writer in self._writers:
            if writer.error is not None:
                self.cancel()
                raise writer.error


def _closed() -> ClosedError:
    return ClosedError("the model was closed; load it again to go on")
