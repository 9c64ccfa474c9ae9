"""Which ids a request has seen, and how often its output holds them: what penalties look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["History"]

Ids = npt.NDArray[np.int32]


class History:
    """Distinct ids of prompt and output in ascending order, with their counts in the output, kept up to date.

    Attributes:
        seen: int32 [n].
        counts: int32 [n].
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.seen: Ids = np.unique(np.asarray(prompt, np.int32))
        self.counts: Ids = np.zeros(len(self.seen), np.int32)

    def holds(self, token_id: int) -> bool:
        """Whether an id has occurred."""
        at = int(np.searchsorted(self.seen, token_id))
        return at < len(self.seen) and bool(self.seen[at] == token_id)

    def add(self, token_id: int) -> None:
        """Count one more token of the output."""
        at = int(np.searchsorted(self.seen, token_id))
        if self.holds(token_id):
            self.counts = self.counts.copy()  # a step may still hold the one before
            self.counts[at] += 1
        else:
            self.seen = np.insert(self.seen, at, np.int32(token_id))
            self.counts = np.insert(self.counts, at, np.int32(1))
