"""The bookkeeping that Runners written in Python share: ids, limits, and what happens after ``close``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from typing_extensions import Self

from ernie_accel.backends.base import Capacity, RunnerInfo, SequenceId
from ernie_accel.backends.checks import check_length
from ernie_accel.errors import ArgumentError, CapacityError, ClosedError

__all__ = ["SequenceRunner", "SequenceState"]


class SequenceState(Protocol):
    """What a Runner keeps for one sequence."""

    @property
    def length(self) -> int:
        """Tokens that count."""
        ...

    def fork(self, length: int) -> Self:
        """Return an independent state that holds the first ``length`` tokens."""
        ...

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens only."""
        ...


State = TypeVar("State", bound=SequenceState)


class SequenceRunner(ABC, Generic[State]):
    """Everything of ``Runner`` but ``forward``, over sequences whose state a subclass defines.

    Args:
        info: The Runner's fixed properties; ``max_sequences`` is enforced here.
        kv_tokens: Tokens that all sequences together may hold.
    """

    def __init__(self, info: RunnerInfo, kv_tokens: int) -> None:
        self._info = info
        self._kv_tokens = kv_tokens
        self._states: dict[SequenceId, State] = {}
        self._parked: set[SequenceId] = set()
        self._last_id = 0
        self._closed = False

    @abstractmethod
    def _empty(self) -> State:
        """Return the state of an empty sequence."""

    @property
    def info(self) -> RunnerInfo:
        """Fixed properties."""
        return self._info

    def open(self) -> SequenceId:
        """Begin an empty sequence."""
        return self._add(self._empty())

    def free(self, seq: SequenceId) -> None:
        """Forget a sequence."""
        self._state(seq)
        del self._states[seq]
        self._parked.discard(seq)

    def park(self, seq: SequenceId) -> None:
        """Keep a sequence for later forks, outside the count of open ones."""
        self._state(seq)
        self._parked.add(seq)

    def fork(self, seq: SequenceId, length: int) -> SequenceId:
        """Begin a sequence with a copy of the first ``length`` tokens of another."""
        state = self._state(seq)
        check_length(length, state.length)
        self._check_tokens(length)
        return self._add(state.fork(length))

    def truncate(self, seq: SequenceId, length: int) -> None:
        """Keep the first ``length`` tokens only."""
        state = self._state(seq)
        check_length(length, state.length)
        state.truncate(length)

    def length(self, seq: SequenceId) -> int:
        """Tokens that the sequence holds."""
        return self._state(seq).length

    def capacity(self) -> Capacity:
        """Room for tokens, over all sequences together."""
        used = sum(state.length for state in self._states.values())
        return Capacity(free_tokens=self._kv_tokens - used, used_tokens=used)

    def close(self) -> None:
        """Forget all sequences and refuse further calls."""
        self._closed = True
        self._states.clear()
        self._parked.clear()

    def _growable_length(self, seq: SequenceId) -> int:
        """Return the tokens of a sequence that may be appended to."""
        length = self.length(seq)
        if seq in self._parked:
            raise ArgumentError(f"sequence {seq} is parked and takes no tokens; fork it")
        return length

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the runner is closed; load the model again")

    def _state(self, seq: SequenceId) -> State:
        self._check_open()
        if seq not in self._states:
            raise ArgumentError(f"sequence {seq!r} is not open; open sequences: {sorted(self._states)}")
        return self._states[seq]

    def _add(self, state: State) -> SequenceId:
        self._check_open()
        limit = self._info.max_sequences
        if len(self._states) - len(self._parked) >= limit:
            raise CapacityError(f"{limit} sequences are open, which is the limit (max_batch); free one first")
        self._last_id += 1
        self._states[self._last_id] = state
        return self._last_id

    def _check_tokens(self, added: int) -> None:
        free = self.capacity().free_tokens
        if added > free:
            raise CapacityError(
                f"{added} tokens need KV cache and {free} are free; free a sequence or raise memory_limit"
            )
