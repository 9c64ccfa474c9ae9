"""Drafts that the model makes itself: multi-token prediction, done for all requests of a step at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ernie_accel.backends.base import Runner
from ernie_accel.backends.capabilities import Drafts
from ernie_accel.engine.costs import StepCosts
from ernie_accel.engine.job import Job
from ernie_accel.engine.speculation import Chances, Speculation, margin
from ernie_accel.errors import CapacityError, UnsupportedError

__all__ = ["Guesses", "MultiToken"]

MOST_GUESSES = 6
"""The predicting layer was trained for the first; what it makes of its own output is soon worth little."""

PRIORS = (0.0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Chance of a guess before anything was seen: the first, the second, the third, those to the seventh."""

PASS_PRIOR = 0.1
"""Before anything was measured, a guess for each sequence is taken to cost so much of a step without guesses."""

PROBE = 64
"""Steps without guesses after which one is tried again: texts change."""

SMALL_BACKLOG = 8
"""Tokens since a request's last guess up to which the duration of a call tells what guesses cost."""


class Guesses:
    """Guesses for one request: what the Runner gave, and how often that was right.

    Args:
        tokens: Prompt and output, the list that grows.
        shared: What is known of other requests.
    """

    def __init__(self, tokens: Sequence[int], shared: Chances) -> None:
        self._tokens = tokens
        self._chances = Chances(shared, memory=64)
        self._ids: tuple[int, ...] = ()
        self._at = 0  # where in the text the first of them would stand
        self._known = 0

    @property
    def backlog(self) -> int:
        """Tokens that were written since the Runner was asked last."""
        return len(self._tokens) - self._known

    def chance(self, depth: int) -> float:
        """Chance that guess number ``depth`` is right where those before it are."""
        return self._chances.at(depth)

    def learn(self) -> None:
        """See which of the last guesses were right."""
        for depth, (guess, token) in enumerate(zip(self._ids, self._tokens[self._at :], strict=False), 1):
            self._chances.note(depth, guess == token)
            if guess != token:
                break
        self._ids = ()

    def give(self, ids: tuple[int, ...]) -> None:
        """Take the guesses at what comes after all tokens that are known; none where the Runner is still behind."""
        self._ids, self._at = ids, len(self._tokens)
        if ids:
            self._known = len(self._tokens)

    def drafts(self, most: int) -> list[int]:
        """Return tokens that may follow, at most ``most``."""
        self._ids = self._ids[: max(0, most)] if self._at == len(self._tokens) else ()
        return list(self._ids)


class _Asking(NamedTuple):
    job: Job
    guesses: Guesses


class MultiToken(Speculation):
    """What all requests of an engine share, and the depth of the next guesses, which is one for all of them.

    A guess costs a pass of the predicting layer and the head for all requests together, and then a row of the step
    each. That depth is taken which promises most tokens for the time of both, as measured; where none does, there are
    no guesses but a probe now and then.

    Raises:
        UnsupportedError: The Runner was not opened with multi-token prediction.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        if not isinstance(runner, Drafts) or "draft" not in runner.info.capabilities:
            raise UnsupportedError(
                f"speculation='mtp': backend {runner.info.backend!r} was opened without multi-token prediction; "
                "backends 'native' and 'reference' have it"
            )
        self.chances = Chances(PRIORS, memory=512)
        self.passes = StepCosts()
        self._runner: Drafts = runner
        self._context = runner.info.max_context
        self._most_sequences = runner.info.max_step_tokens
        self._idle = 0
        self._failed = False

    def drafter(self, tokens: Sequence[int], prompt: int) -> Guesses:
        """Return what guesses for one request."""
        return Guesses(tokens, self.chances)

    def prepare(self, jobs: Sequence[Job], left: int) -> None:
        """Ask for guesses where they are worth their time, ``left`` at most; jobs have one token pending each."""
        asking = [
            _Asking(job, job.drafter)
            for job in jobs
            if isinstance(job.drafter, Guesses)
            and job.draft_room > 0
            and len(job.tokens) + MOST_GUESSES <= self._context
        ][: min(left, self._most_sequences)]
        for one in asking:
            one.guesses.learn()
        if not asking or self._failed:
            return
        depth = self._depth(asking, len(jobs), left)
        self._idle = 0 if depth else self._idle + 1
        if self._idle >= PROBE:
            depth, self._idle = 1, 0
        if depth:
            self._ask(asking, depth)

    def _depth(self, asking: Sequence[_Asking], requests: int, left: int) -> int:
        """Return how many guesses for each promise most tokens for the time, 0 if none do."""
        costs, count = self.costs, len(asking)
        most = min(MOST_GUESSES, left // count, max(1, (2 * costs.largest + 2 - requests) // count))
        best, depth = margin(requests) * requests / costs.relative(requests), 0
        chances, tokens = [1.0] * count, float(requests)
        for guess in range(1, most + 1):
            for i, (job, guesses) in enumerate(asking):
                chances[i] *= guesses.chance(guess) if guess <= job.draft_room else 0.0
            tokens += sum(chances)
            rate = tokens / (costs.relative(requests + guess * count) + guess * self._pass(count, requests))
            if rate > best:
                best, depth = rate, guess
        return depth

    def _pass(self, count: int, requests: int) -> float:
        """Return what a guess for each of ``count`` sequences costs, in the unit of steps."""
        if not self.passes.largest or not self.costs.level:
            return PASS_PRIOR * self.costs.relative(requests)
        return self.passes.relative(count) * self.passes.level / self.costs.level

    def _ask(self, asking: Sequence[_Asking], depth: int) -> None:
        seqs = [one.job.seq for one in asking if one.job.seq is not None]
        following = [one.job.tokens[-1] for one in asking if one.job.seq is not None]
        backlog = max(one.guesses.backlog for one in asking)
        began = time.perf_counter()
        try:
            given = self._runner.draft(seqs, following, depth)
        except CapacityError:  # nobody gives memory up for guesses
            return
        except Exception as error:  # guesses are not worth a request, and the next would end alike
            self._failed = True
            with suppress(Warning):  # where warnings are errors, this one must not end the requests either
                warnings.warn(
                    f"multi-token prediction failed and is off from here on: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return
        if backlog <= SMALL_BACKLOG:
            self.passes.note(len(seqs), (time.perf_counter() - began) / depth)
        for one, ids in zip(asking, given, strict=True):
            one.guesses.give(ids)
