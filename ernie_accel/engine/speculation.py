"""Drafts: how many guessed tokens a step checks beside those that it must compute, so that text comes fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ernie_accel.engine.costs import StepCosts
from ernie_accel.engine.lookup import LONGEST, Lookup

if TYPE_CHECKING:
    from ernie_accel.engine.job import Job

__all__ = ["Chances", "DraftSource", "Drafter", "Speculation", "margin"]

MOST_DRAFTS = 24
"""More are hardly ever all right."""

MARGIN = 1.05
"""Speed that drafts must promise to be tried: what is learned of chances and durations is not exact."""

CAUTION = 0.02
"""How much more drafts must promise for each further request in the step, up to ``CROWD`` of them: what they take from
the others is certain, and of several promises the one that was estimated too high is chosen."""

CROWD = 8

LEAST_CHANCE = 0.02
"""Further drafts are less probable still."""

LEARNED_AT_ONCE = 4096
"""Ids of a long prompt that one step indexes, so that nobody waits long."""

PRIORS = (0.0, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
"""Chance of a guess before anything was seen, by length of the match: 0, 1, 2, 3, 4 to 7, 8 to 15, 16 and more."""

PRIOR_WEIGHT = 8.0
"""Guesses that a chance known beforehand counts for."""


CLASSES = tuple(n if n < 4 else min(n.bit_length() + 1, len(PRIORS) - 1) for n in range(LONGEST + 1))
"""Index into PRIORS by length of the match."""


def margin(requests: int) -> float:
    """Speed that drafts must promise in a step of so many requests, as a multiple of the speed without them."""
    return MARGIN * (1 + CAUTION * (min(requests, CROWD) - 1))


class Chances:
    """How often guesses were right, by length of the match. Late ones count more.

    Args:
        before: What is known before the first guess.
        memory: Guesses after which the weight of earlier ones is halved.
    """

    def __init__(self, before: Sequence[float] | Chances = PRIORS, *, memory: int) -> None:
        self._before = before
        self._memory = memory
        self._right = [0.0] * len(PRIORS)
        self._all = [0.0] * len(PRIORS)
        self.values: list[float] = list(before.values if isinstance(before, Chances) else before)
        """Chance of the next guess for each class of lengths."""

    def at(self, match: int) -> float:
        """Return the chance of the next guess after a match of that length."""
        return self.values[CLASSES[match]]

    def note(self, match: int, right: bool) -> None:
        """Learn whether the guess after a match of that length was right."""
        self._note(CLASSES[match], right)

    def _note(self, kind: int, right: bool) -> None:
        before = self._before
        if isinstance(before, Chances):
            before._note(kind, right)
            before = before.values
        if self._all[kind] >= self._memory:
            self._all[kind] /= 2
            self._right[kind] /= 2
        self._all[kind] += 1
        self._right[kind] += right
        self.values[kind] = (self._right[kind] + PRIOR_WEIGHT * before[kind]) / (
            self._all[kind] + PRIOR_WEIGHT
        )


class DraftSource(Protocol):
    """Drafts for one request."""

    def drafts(self, most: int) -> list[int]:
        """Return tokens that may follow all that are known, at most ``most``."""
        ...


class Speculation:
    """What all requests of an engine share: durations of steps, chances of guesses, and the step that is put together.

    A draft costs time whether it is right or not. Those are worth it that raise the tokens expected of the step by
    more than its duration; requests that come first in the step choose first.
    """

    def __init__(self) -> None:
        self.costs = StepCosts()
        self.chances = Chances(memory=512)
        self._rows = 0
        self._tokens = 0.0
        self._margin = MARGIN

    def drafter(self, tokens: Sequence[int], prompt: int) -> DraftSource:
        """Return what drafts for one request; see ``Drafter``."""
        return Drafter(tokens, prompt, self)

    def prepare(self, jobs: Sequence[Job], left: int) -> None:
        """Get ready for all that may draft in this step, ``left`` tokens at most, before each is asked."""

    def begin(self, requests: int) -> None:
        """Begin a step in which so many requests take one token each."""
        self._rows = requests
        self._tokens = float(requests)
        self._margin = margin(requests)

    def depth(self, match: int, chances: Sequence[float], most: int) -> int:
        """Return how many drafts after a match of that length are worth their time, and count them in.

        Args:
            match: Ids before the drafts that are known to be equal.
            chances: Of a draft whose predecessors are right, by class of the match that ends with them.
            most: Largest number.
        """
        costs, rows = self.costs, self._rows
        most = min(most, MOST_DRAFTS, max(0, 2 * costs.largest + 2 - rows))
        best, depth, gain = self._margin * self._tokens / costs.relative(rows), 0, 0.0
        chance, tokens = 1.0, self._tokens
        for count in range(1, most + 1):
            chance *= chances[CLASSES[min(match + count - 1, LONGEST)]]
            if chance < LEAST_CHANCE:
                break
            tokens += chance
            rate = tokens / costs.relative(rows + count)
            if rate > best:
                best, depth, gain = rate, count, tokens - self._tokens
        self._rows += depth
        self._tokens += gain
        return depth


class Drafter:
    """Guesses for one request.

    Args:
        tokens: Prompt and output, the list that grows.
        prompt: How many of them are the prompt.
        shared: What is known of other requests and of durations.
    """

    def __init__(self, tokens: Sequence[int], prompt: int, shared: Speculation) -> None:
        self._tokens = tokens
        self._prompt = prompt
        self._shared = shared
        self._lookup = Lookup(tokens)
        self._chances = Chances(shared.chances, memory=64)

    def drafts(self, most: int) -> list[int]:
        """Return tokens that may follow, at most ``most``, none if they are not worth checking."""
        lookup = self._lookup
        if not self._catch_up() or not lookup.match or most < 1:
            return []
        depth = self._shared.depth(lookup.match, self._chances.values, most)
        return lookup.guess(depth) if depth else []

    def _catch_up(self) -> bool:
        """Learn from what was written since the last time, whether it was drafted or not; False if there is more."""
        lookup, tokens = self._lookup, self._tokens
        if lookup.known < self._prompt:
            lookup.learn(min(self._prompt, lookup.known + LEARNED_AT_ONCE))
            if lookup.known < self._prompt:
                return False
            lookup.find()
        while lookup.known < len(tokens):
            if lookup.match:
                self._chances.note(lookup.match, tokens[lookup.place] == tokens[lookup.known])
            lookup.follow()
        return True
