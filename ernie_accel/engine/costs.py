"""How long a step takes by its number of tokens, learned from the steps themselves."""

from __future__ import annotations

from bisect import bisect_left, insort

__all__ = ["StepCosts"]

PRIOR = 0.05
"""Before anything was measured, a token more is taken to cost so much of a step of one: a little too cheap, so that it
is tried."""

SOON = 0.3
"""Weight of one step for the level of all durations, which other programs on the machine move."""

LATE = 0.05
"""Weight of one step for how durations compare, which is a property of the machine."""

RANGE = 2.0
"""A duration counts as at most so many times what was expected, and at least so little: what took much longer was held
up by something else."""

MEMORY = 2048
"""Steps after which a number of tokens that was not used is forgotten, and so tried again."""


class _Measured:
    def __init__(self, value: float, step: int) -> None:
        self.value = value
        self.count = 1
        self.last = step


class StepCosts:
    """Durations as a common level times one value for each number of tokens, between them along straight lines."""

    def __init__(self) -> None:
        self._level = 0.0
        self._steps = 0
        self._measured: dict[int, _Measured] = {}
        self._sizes: list[int] = []  # of _measured, ascending

    @property
    def level(self) -> float:
        """Seconds of the unit of ``relative`` now, 0 before the first step."""
        return self._level

    @property
    def largest(self) -> int:
        """Largest number of tokens that is known, 0 if none is."""
        return self._sizes[-1] if self._sizes else 0

    def relative(self, tokens: int) -> float:
        """Return how long a step takes, in a unit that all steps share for the moment."""
        known = self._measured.get(tokens)
        if known is not None:
            return known.value
        at = bisect_left(self._sizes, tokens)
        prior = 1 + PRIOR * tokens
        if not self._sizes:
            return prior
        if 0 < at < len(self._sizes):
            low, high = self._sizes[at - 1], self._sizes[at]
            start, end = self._measured[low].value, self._measured[high].value
            return start + (end - start) * (tokens - low) / (high - low)
        nearest = self._sizes[min(at, len(self._sizes) - 1)]
        return self._measured[nearest].value * prior / (1 + PRIOR * nearest)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn how long a step of ``tokens`` took."""
        self._steps += 1
        known = self._measured.get(tokens)
        expected = known.value if known is not None else self.relative(tokens)
        if not self._level:
            self._level = seconds / expected
        value = _near(seconds / self._level, expected)
        if known is None:
            known = self._measured[tokens] = _Measured(value, self._steps)
            insort(self._sizes, tokens)
        else:
            known.count += 1
            known.last = self._steps
            known.value += max(LATE, 1 / known.count) * (value - known.value)
        self._level += SOON * (_near(seconds / known.value, self._level) - self._level)
        if self._steps % (MEMORY // 8) == 0:
            self._forget()

    def _forget(self) -> None:
        for size in [size for size in self._sizes if self._measured[size].last <= self._steps - MEMORY]:
            del self._measured[size]
            self._sizes.remove(size)


def _near(value: float, expected: float) -> float:
    return min(max(value, expected / RANGE), expected * RANGE)
