"""A job feeds tokens to one sequence of a Runner: what the scheduler sees of requests."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ernie_accel.backends.base import Select, SequenceId, Step, StepResult
from ernie_accel.bell import Bell
from ernie_accel.engine.speculation import DraftSource
from ernie_accel.engine.structured import Guide

__all__ = ["Fork", "Job"]


class Fork(NamedTuple):
    """The first ``length`` tokens of sequence ``seq`` are a beginning that another job can share."""

    seq: SequenceId
    length: int


class Job(ABC):
    """Tokens to compute and what to do with the answers.

    Whatever is not in the KV cache can be computed again from ``tokens``, so a job that lost its sequence (to make
    room for others, or to a step that failed) only has to set ``computed`` back.

    Args:
        tokens: The ids that are known from the start.
        priority: Jobs of a higher one are started first, and keep their memory longest.
        deadline: ``time.monotonic()`` from which on the job is no use to anybody.

    Attributes:
        kind: What it is in the statistics: a "request" for a completion, an "alternative" of one, or a "text" that is
            read.
        tokens: All ids that are known: the prompt, then what was drawn.
        computed: How many of them the sequence holds.
        cached: How many of them it began with, computed earlier for another job.
        arrival: Its number in the order of arrival.
        seq: The sequence, None while the job waits.
        done: Nothing more will be computed.
        error: Why the job failed, None if it didn't.
        keys: Of the beginnings of ``tokens``, as far as the prefix cache has looked.
        matches: What the prefix cache found last, and its version then.
        arrived: When the caller asked, ``time.perf_counter()``.
        started: When it was given its first sequence, 0 before.
        outcome: How it ended, for statistics: stop, length, cancelled, failed.
        passed_over: Tokens of others that were computed while it waited for its turn in a step.
        ended: Rung when the job is done.
        guide: What its output is led by, None if it is free.
        drafter: What guesses the tokens to come, None if nothing does.
    """

    kind: Literal["request", "alternative", "text"] = "text"

    def __init__(self, tokens: list[int], *, priority: int = 0, deadline: float = math.inf) -> None:
        self.tokens = tokens
        self.priority = priority
        self.deadline = deadline
        self.computed = 0
        self.cached = 0
        self.arrival = 0
        self.seq: SequenceId | None = None
        self.done = False
        self.error: BaseException | None = None
        self.keys: list[int] = []
        self.matches: tuple[int, Sequence[Any]] | None = None
        self.arrived = time.perf_counter()
        self.started = 0.0
        self.outcome = "stop"
        self.passed_over = 0
        self.ended = Bell()
        self.guide: Guide | None = None
        self.drafter: DraftSource | None = None

    @property
    def pending(self) -> int:
        """Tokens that are known and not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def next_count(self) -> int:
        """Tokens that the job would like to compute in the next step, at least one."""
        return self.pending

    @property
    def held_up(self) -> bool:
        """Whether starting now would compute what another job is computing and could share in a moment."""
        return False

    @property
    def shared(self) -> Fork | None:
        """A beginning that is computed already and can be forked, None if there is none."""
        return None

    @property
    def shareable(self) -> int:
        """How many of the first tokens may come from an earlier computation: 0 where their answers are needed."""
        return 0

    @property
    def draft_room(self) -> int:
        """How many tokens ``drafts`` would take now."""
        return 0

    def drafts(self, most: int) -> int:
        """Guess up to ``most`` tokens that follow all that is known; return how many there are, for ``step``."""
        return 0

    @abstractmethod
    def step(self, count: int, *, late: bool = False) -> Step:
        """Return the step that appends the next ``count`` tokens; those beyond ``pending`` are the first drafts.

        With ``late`` one that draws has no Select: ``select`` gives it.
        """

    def select(self) -> Select:
        """Return what a late step lacks."""
        raise NotImplementedError("only what writes draws")

    @abstractmethod
    def accept(self, count: int, result: StepResult) -> None:
        """Take the answer to ``step(count)``, and count in ``computed`` what the sequence should hold from now on."""

    @abstractmethod
    def cancel(self) -> None:
        """End now, keeping what there is."""

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.done:
            self.error = error
            self.outcome = "failed"
            self.finish()

    def finish(self) -> None:
        """End, and wake whoever waits for it."""
        self.done = True
        self.ended.ring()
