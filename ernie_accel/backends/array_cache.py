"""What the reference keeps of one sequence: NumPy arrays that double when they are full."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["KvCache", "Span", "split"]

Array = npt.NDArray[np.float32]


class KvCache:
    """Rotated keys, and values, of one sequence: [layers, room, kv_heads, d], of which ``length`` tokens count.

    The room doubles when it is used up. What lies beyond ``length`` is never read.

    With multi-token prediction the predicting layer is the last one, and there are hidden states [room, H] and ids.
    Position t of that layer depends on the token at t + 1, so its first ``predicted`` positions, fewer than ``length``,
    count.
    """

    def __init__(self, layers: int, kv_heads: int, dim: int, hidden: int = 0) -> None:
        self.length = 0
        self.predicted = 0
        self.ids: list[int] = []
        self.keys: Array = np.empty((layers, 0, kv_heads, dim), np.float32)
        self.values: Array = np.empty_like(self.keys)
        self.hidden: Array = np.empty((0, hidden), np.float32)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens."""
        room = self.keys.shape[1]
        if length > room:
            room = max(length, 2 * room)
            self.keys, self.values = self._grown(self.keys, room), self._grown(self.values, room)
            self.hidden = self._grown(self.hidden[None], room)[0]

    def fork(self, length: int) -> KvCache:
        """Copy the first ``length`` tokens."""
        other = KvCache(self.keys.shape[0], *self.keys.shape[2:])
        other.keys, other.values = self.keys[:, :length].copy(), self.values[:, :length].copy()
        other.hidden = self.hidden[:length].copy()
        other.ids, other.predicted = list(self.ids), self.predicted
        other.truncate(length)
        return other

    def truncate(self, length: int) -> None:
        """Forget the tail."""
        self.length = length
        self.predicted = min(self.predicted, max(0, length - 1))
        del self.ids[length:]

    def _grown(self, old: Array, room: int) -> Array:
        new = np.empty((old.shape[0], room, *old.shape[2:]), np.float32)
        new[:, : self.length] = old[:, : self.length]
        return new


class Span(NamedTuple):
    """The next ``size`` positions of one sequence, from ``first`` on."""

    cache: KvCache
    first: int
    size: int


def split(x: Array, spans: list[Span]) -> list[Array]:
    """Cut the first axis into one part for each span."""
    return np.split(x, np.cumsum([span.size for span in spans])[:-1])
