"""Finds earlier places of a text that read like its end: what stood there next is a guess at what comes next here."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

__all__ = ["LONGEST", "Lookup"]

LONGEST = 32
"""Matches are not told apart beyond this length."""

CANDIDATES = 16
"""Earlier places that are compared, the latest first: those of common pairs of ids are many, and old ones say less."""


class Lookup:
    """The place in a growing list of ids whose past has the most in common with the end of the list.

    Pairs of ids are chained from their latest place back, as in the coder of Ziv and Lempel (1977) that RFC 1951
    describes; single ids know their latest place alone. Work and memory for an id are bounded.

    Args:
        tokens: The list, which others append to.

    Attributes:
        place: Index of the id that followed at the place found, 0 if nothing was found.
        match: How many ids before it equal the end of the list, at most ``LONGEST``.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._known = 0  # tokens that were looked at
        self._singles: dict[int, int] = {}  # id: latest index after it
        self._pairs: dict[tuple[int, int], int] = {}  # ids: latest index after them
        self._before = array("i")  # for each index the earlier one after the same pair, 0 if there is none
        self.place = 0
        self.match = 0

    @property
    def known(self) -> int:
        """How many ids of the list ``place`` takes into account."""
        return self._known

    def learn(self, end: int) -> None:
        """Take ids up to index ``end`` into account, and find nothing yet."""
        tokens, singles, pairs, before = self._tokens, self._singles, self._pairs, self._before
        for index in range(self._known, end):
            earlier = 0
            if index >= 2:
                pair = (tokens[index - 2], tokens[index - 1])
                earlier = pairs.get(pair, 0)
                pairs[pair] = index
            if index:
                singles[tokens[index - 1]] = index
            before.append(earlier)
        self._known = max(self._known, end)
        self.place = self.match = 0

    def follow(self) -> None:
        """Take the next id into account and find the place for what comes after it."""
        index, place, match = self._known, self.place, self.match
        held = place > 0 and self._tokens[place] == self._tokens[index]
        self.learn(index + 1)
        if held and match >= CANDIDATES:  # long enough not to look for a better one
            self.place, self.match = place + 1, min(match + 1, LONGEST)
        else:
            self.find()

    def find(self) -> None:
        """Find the place for what comes after the ids that were taken into account."""
        tokens, end = self._tokens, self._known
        self.place = self.match = 0
        if end < 2:
            return
        candidate = self._pairs.get((tokens[end - 2], tokens[end - 1]), 0)
        for _ in range(CANDIDATES):
            if not candidate:
                break
            match = self._common(candidate, end)
            if match > self.match:
                self.place, self.match = candidate, match
                if match == LONGEST:
                    break
            candidate = self._before[candidate]
        if not self.place:
            self.place = self._singles.get(tokens[end - 1], 0)
            self.match = 1 if self.place else 0

    def guess(self, count: int) -> list[int]:
        """Return ``count`` ids that may follow; where they reach the end of the list, they go on as it would repeat."""
        tokens, place, end = self._tokens, self.place, self._known
        ids = list(tokens[place : min(place + count, end)])
        period = end - place
        while len(ids) < count:
            ids.append(ids[len(ids) - period])
        return ids

    def _common(self, place: int, end: int) -> int:
        """Return how many ids before ``place`` and ``end`` are equal, two at least by their pair, at most LONGEST."""
        tokens = self._tokens
        most = min(place, LONGEST)
        match = 2
        while match < most and tokens[place - match - 1] == tokens[end - match - 1]:
            match += 1
        return match
