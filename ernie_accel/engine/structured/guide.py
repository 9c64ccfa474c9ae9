"""Leads one completion along a constraint: what may be drawn, and what follows without drawing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from ernie_accel.engine.structured.constraint import Constraint, Mask
from ernie_accel.errors import ArgumentError

__all__ = ["Guide"]


class Guide:
    """A constraint as the writer of a completion needs it.

    Args:
        constraint: At the beginning of the output; it is the guide's own from here on.
        skip: Hand forced tokens out, so that they skip the model. Otherwise each has to be drawn, where the mask allows
            nothing else: the tokens are the same, and their log-probabilities are found.
    """

    def __init__(self, constraint: Constraint, *, skip: bool) -> None:
        self._constraint = constraint
        self._skip = skip
        self._due: deque[int] = deque()  # forced, to be drawn one by one
        self._mask: Mask | ArgumentError | None = None

    @classmethod
    def of(cls, constraint: Constraint | None, *, skip: bool) -> Guide | None:
        """A guide along a copy of the constraint, None without one."""
        return None if constraint is None else cls(constraint.copy(), skip=skip)

    def begin(self) -> tuple[int, ...]:
        """Return the tokens that every output begins with."""
        return self._forced()

    def mask(self) -> Mask:
        """Which ids may be drawn next, as ``Constraint.mask``; the same until ``take``."""
        if self._mask is None:
            self._mask = self._only(self._due[0]) if self._due else self._constraint.mask()
        if isinstance(self._mask, ArgumentError):
            raise self._mask
        return self._mask

    @property
    def waits(self) -> bool:
        """Whether ``mask`` would have something to work out."""
        return self._mask is None and not self._due

    @staticmethod
    def prepare(guides: Iterable[Guide]) -> None:
        """Compute the masks of several guides side by side; ``mask`` then has them."""
        waiting = [guide for guide in guides if guide.waits]
        if len(waiting) < 2:
            return
        masks = Constraint.masks([guide._constraint for guide in waiting])
        for guide, mask in zip(waiting, masks, strict=True):
            guide._mask = mask

    def take(self, token_id: int) -> tuple[int, ...]:
        """Take a token that was drawn, none that ends the request; return those that can only follow it."""
        self._mask = None
        if self._due:
            self._due.popleft()
            return ()
        self._constraint.accept(token_id)
        return self._forced()

    @property
    def finished(self) -> bool:
        """Whether the output is complete and nothing can follow."""
        return not self._due and self._constraint.finished

    def _forced(self) -> tuple[int, ...]:
        forced = self._constraint.forced()
        if self._skip:
            return forced
        self._due.extend(forced)
        return ()

    def _only(self, token_id: int) -> Mask:
        mask = np.zeros(self._constraint.words, np.uint32)
        mask[token_id // 32] = 1 << token_id % 32
        return mask
