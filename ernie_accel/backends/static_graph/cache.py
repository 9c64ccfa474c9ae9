"""Keys and values on the host, placed so that a step reads them where they lie.

An arena is one array [2 * layers, rows, kv_heads, places, d]; a sequence owns one row of it. Sequences that are
computed together lie in one arena, side by side, so that their past is a slice without gaps: nothing is copied to call
the graph. Rows are copied when a sequence joins others, and when an arena must grow, by blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ernie_accel.errors import CapacityError
from ernie_accel.export.signature import Signature

__all__ = ["Arena", "Cache", "CachedSequence"]

BLOCK = 64
"""Places are taken in multiples of this."""

Zeros = Callable[[tuple[int, ...], np.dtype[np.generic]], npt.NDArray[np.generic]]


class CachedSequence:
    """One sequence: ``length`` tokens in a row of an arena. It is the state of ``SequenceRunner``."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.arena: Arena | None = None
        self.row = 0
        self.length = 0

    def fork(self, length: int) -> CachedSequence:
        """Copy the first ``length`` tokens into an arena of their own."""
        other = CachedSequence(self.cache)
        if length:
            arena = self.cache.arena(1, length, BLOCK)
            arena.adopt(other, 0)
            arena.copy_in(self, length, 0)
            other.length = length
        return other

    def truncate(self, length: int) -> None:
        """Forget the tail."""
        self.length = length

    def release(self) -> None:
        """Give the row back."""
        if self.arena is not None:
            self.arena.owners[self.row] = None
        self.arena = None

    def compact(self) -> None:
        """Move to an arena that holds nothing else, so that the row is free for a sequence that grows."""
        if self.arena is not None:
            self.cache.arena(1, self.length).take(self, 0)


class Arena:
    """Rows of equally many places; see above."""

    def __init__(self, data: npt.NDArray[np.generic]) -> None:
        self.data = data
        self.owners: list[CachedSequence | None] = [None] * data.shape[1]

    @property
    def places(self) -> int:
        """Tokens that a row can hold."""
        return int(self.data.shape[3])

    @property
    def free_rows(self) -> list[int]:
        """Rows without an owner, lowest first."""
        return [row for row, owner in enumerate(self.owners) if owner is None]

    def longest(self) -> int:
        """Length of the longest sequence."""
        return max((owner.length for owner in self.owners if owner is not None), default=0)

    def take(self, sequence: CachedSequence, row: int) -> None:
        """Move a sequence into a free row."""
        self.copy_in(sequence, sequence.length, row)
        sequence.release()
        self.adopt(sequence, row)

    def adopt(self, sequence: CachedSequence, row: int) -> None:
        """Make a row that of a sequence which lies nowhere."""
        self.owners[row] = sequence
        sequence.arena, sequence.row = self, row

    def copy_in(self, sequence: CachedSequence, length: int, row: int) -> None:
        """Copy the beginning of a sequence into a free row; what lies behind it is finite, as the graph demands."""
        if length and sequence.arena is not None:
            self.data[:, row, :, :length] = sequence.arena.data[:, sequence.row, :, :length]
        self.data[:, row, :, length:] = 0

    def write(self, sequence: CachedSequence, new: npt.NDArray[np.generic]) -> None:
        """Append [2 * layers, kv_heads, n, d] to a sequence that has the room."""
        end = sequence.length + new.shape[2]
        self.data[:, sequence.row, :, sequence.length : end] = new
        sequence.length = end


class Cache:
    """Makes arenas, and brings sequences together in one.

    Args:
        signature: Of the graph; gives the shape of a row.
        zeros: ``Executor.zeros``.
        max_context: No row needs more places.
        max_rows: No arena may have more; None without a limit.
    """

    def __init__(
        self, signature: Signature, zeros: Zeros, max_context: int, max_rows: int | None = None
    ) -> None:
        self._signature = signature
        self._zeros = zeros
        self._max_context = max_context
        self._max_rows = max_rows

    def arena(self, rows: int, need: int, more: int = 0) -> Arena:
        """A new arena of at least ``need`` places, and about ``more`` to grow into while the context has them.

        Raises CapacityError if the memory is used up.
        """
        s = self._signature
        places = max(1, need, min(-(-(need + more) // BLOCK) * BLOCK, self._max_context))
        shape = (2 * s.layers, rows, s.kv_heads, places, s.head_dim)
        try:
            return Arena(self._zeros(shape, np.dtype(s.cache_dtype)))
        except MemoryError as error:
            raise CapacityError(
                f"no memory for {rows} sequences of {places} tokens ({rows * places * s.token_bytes:,} bytes); "
                "free a sequence, or lower max_batch or max_context"
            ) from error

    def gather(self, sequences: Sequence[CachedSequence]) -> tuple[Arena, int, int]:
        """Bring sequences into one arena; return it and the range of rows in which they lie.

        Up to a quarter as many rows of the range may belong to nobody, or to others.
        """
        arena = self._host(sequences)
        for sequence in sequences:
            if sequence.arena is not arena:
                arena.take(sequence, arena.free_rows[0])
        self._close_gaps(arena, sequences)
        if _gaps(sequences) > len(sequences) // 4:
            arena = self._new_home(sequences)
            for row, sequence in enumerate(sequences):
                arena.take(sequence, row)
        rows = [sequence.row for sequence in sequences]
        return arena, min(rows), max(rows) + 1

    def reserve(self, sequence: CachedSequence, added: int) -> None:
        """Make room for ``added`` more tokens; the others of the arena move along."""
        need = sequence.length + added
        old = sequence.arena
        if old is None:
            self.arena(1, need, BLOCK).take(sequence, 0)
        elif need > old.places:
            new = self.arena(len(old.owners), need, need // 8)
            for row, owner in enumerate(old.owners):
                if owner is not None:
                    new.take(owner, row)

    def _host(self, sequences: Sequence[CachedSequence]) -> Arena:
        """The arena that holds most of the sequences, if it has room for the rest and is not far too large."""
        longest = max(sequence.length for sequence in sequences)
        counts = Counter(sequence.arena for sequence in sequences if sequence.arena is not None)
        for arena, inside in counts.most_common(1):
            fits = len(arena.free_rows) >= len(sequences) - inside and longest <= arena.places
            if fits and arena.places <= 2 * max(longest, arena.longest()) + 4 * BLOCK:
                return arena
        return self._new_home(sequences)

    def _new_home(self, sequences: Sequence[CachedSequence]) -> Arena:
        count = len(sequences)
        spare = count // 4 if count > 1 else 0  # so that the next to join need not move everybody
        rows = count + spare if self._max_rows is None else min(count + spare, self._max_rows)
        return self.arena(rows, max(sequence.length for sequence in sequences), BLOCK)

    def _close_gaps(self, arena: Arena, sequences: Sequence[CachedSequence]) -> None:
        """Move the highest rows into free ones below them."""
        for sequence in sorted(sequences, key=lambda s: s.row, reverse=True):
            free = arena.free_rows
            if not _gaps(sequences) or not free or free[0] > sequence.row:
                return
            arena.take(sequence, free[0])


def _gaps(sequences: Sequence[CachedSequence]) -> int:
    """Rows between the first and the last of the sequences that are none of them."""
    rows = [sequence.row for sequence in sequences]
    return max(rows) + 1 - min(rows) - len(rows)
