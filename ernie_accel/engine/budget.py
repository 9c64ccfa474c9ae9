"""How many tokens a step may have: as many as give full speed, or as few as keep the time between two tokens short."""

from __future__ import annotations

__all__ = ["TOKENS_PER_STEP", "Budget"]

TOKENS_PER_STEP = 512
"""Enough for full speed on a prompt, few enough that a cancel, which waits for the step, takes effect soon."""

LEAST_PROMPT = 16
"""A step has room for so many tokens of prompts at least, or they would never end."""

FADE = 0.9
"""Weight of what was known before against one more step."""


class Budget:
    """Tokens of a step. With a target for its duration it follows a line through the durations measured so far.

    Args:
        most: Largest number of tokens.
        target: Seconds that a step in which somebody waits for a next token should take at most; None: no matter.
    """

    def __init__(self, most: int, target: float | None = None) -> None:
        self._most = most
        self._target = target
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def tokens(self, decoding: int) -> int:
        """Return how many tokens the next step may have, ``decoding`` of them next tokens of running requests."""
        if self._target is None or decoding == 0:
            return self._most
        least = decoding + LEAST_PROMPT
        line = self._line()
        if line is None:
            return min(self._most, 4 * least)
        start, slope = line
        fitting = int((self._target - start) / slope) if slope > 0 else self._most
        return min(self._most, max(least, fitting))

    def note(self, tokens: int, seconds: float) -> None:
        """Learn how long a step of ``tokens`` took."""
        if self._target is None:
            return
        self._weight = self._weight * FADE + 1
        self._x = self._x * FADE + tokens
        self._y = self._y * FADE + seconds
        self._xx = self._xx * FADE + tokens * tokens
        self._xy = self._xy * FADE + tokens * seconds

    def _line(self) -> tuple[float, float] | None:
        """Return start and slope of the least-squares line; where all steps were alike, one through the origin."""
        if self._weight == 0 or self._x == 0:
            return None
        spread = self._weight * self._xx - self._x * self._x
        if spread <= 1e-6 * self._weight * self._xx:
            return 0.0, self._y / self._x
        slope = (self._weight * self._xy - self._x * self._y) / spread
        return (self._y - slope * self._x) / self._weight, slope
