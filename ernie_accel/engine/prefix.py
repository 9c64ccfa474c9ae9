"""Finds beginnings of prompts that are in the KV cache already, and keeps ended requests there for that."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_accel.backends.base import Runner, SequenceId
from ernie_accel.backends.capabilities import Parks
from ernie_accel.engine.job import Fork, Job

__all__ = ["PrefixCache"]

BLOCK = 16
"""Tokens that are looked up together; less in common is not worth a fork."""

KEPT_SEQUENCES = 256
KEPT_TOKENS = 65_536
"""Ended requests keep at most this many tokens and half of the KV cache, but one whole context in any case."""

CANDIDATES = 8
"""Entries with the same beginning that are compared token by token."""


class _Entry:
    """A sequence whose beginnings can be found: of a job that runs, or parked (then ``job`` is None)."""

    def __init__(
        self, seq: SequenceId, tokens: Sequence[int], keys: list[int], job: Job | None = None
    ) -> None:
        self.seq = seq
        self.tokens = tokens
        self.keys = keys
        self.job = job

    @property
    def available(self) -> int:
        """Tokens that the sequence holds."""
        return len(self.tokens) if self.job is None else self.job.computed


class PrefixCache:
    """Every beginning of whole blocks has a key, chained from the keys of the blocks before it.

    Sequences that run are found too. Equal keys are only a hint, tokens are compared. Entries that were not used for
    longest go first.
    """

    def __init__(self, runner: Runner, enabled: bool) -> None:
        self._runner = runner
        self._most_tokens = 0
        self._index: dict[int, dict[_Entry, None]] = {}
        self._running: dict[Job, _Entry] = {}
        self._kept: dict[_Entry, None] = {}  # oldest first
        self._kept_ends: dict[int, dict[_Entry, None]] = {}  # by their last keys
        self._kept_tokens = 0
        self._version = 0  # of what can be found
        self._enabled = enabled and "park" in runner.info.capabilities and isinstance(runner, Parks)

    @property
    def kept_tokens(self) -> int:
        """Tokens of ended requests that are kept; what they share with one another counts for each."""
        return self._kept_tokens

    @property
    def kept_sequences(self) -> int:
        """Ended requests that are kept."""
        return len(self._kept)

    def find(self, job: Job) -> tuple[Fork | None, bool]:
        """Return the longest beginning that can be forked now, and whether a better one will be there in a moment."""
        if not self._enabled or job.shareable < BLOCK:
            return None, False
        best, soon, source = 0, 0, None
        for entry, common in self._matches(job):
            now = min(common, entry.available)
            if entry.job is None or entry.job.priority >= job.priority:  # else it may stand still itself
                soon = max(soon, common)
            if now > best:
                best, source = now, entry
        wait = soon - best >= 2 * BLOCK
        if source is None or best < BLOCK:
            return None, wait
        if source in self._kept:  # used last
            del self._kept[source]
            self._kept[source] = None
        return Fork(source.seq, best), wait

    def enter(self, job: Job) -> None:
        """Make the beginnings of a job that was given its sequence known."""
        job.matches = None
        if self._enabled and job.shareable >= BLOCK and job.seq is not None:
            entry = _Entry(job.seq, job.tokens, _keys(job, job.shareable), job)
            self._add(entry)
            self._running[job] = entry

    def leave(self, job: Job, seq: SequenceId) -> bool:
        """Forget a job; if it ended with something worth keeping, park its sequence and return True."""
        entry = self._running.pop(job, None)
        if entry is not None:
            self._drop(entry)
        worth = self._enabled and job.shareable > 0 and job.computed >= BLOCK
        if not worth or not job.done or job.error is not None:
            return False
        self._park(_Entry(seq, job.tokens[: job.computed], _keys(job, job.computed)))
        return True

    def is_next(self, seq: SequenceId) -> bool:
        """Whether ``evict`` would free this sequence."""
        return bool(self._kept) and next(iter(self._kept)).seq == seq

    def evict(self) -> bool:
        """Free the entry that was not used for longest; False if there is none."""
        if not self._kept:
            return False
        self._free(next(iter(self._kept)))
        return True

    def clear(self) -> None:
        """Free all entries."""
        while self.evict():
            pass

    def forget(self) -> None:
        """Forget everything without touching the Runner, which is closed."""
        self._version += 1
        self._index.clear()
        self._running.clear()
        self._kept.clear()
        self._kept_ends.clear()
        self._kept_tokens = 0

    def _park(self, entry: _Entry) -> None:
        """Keep a sequence; those that are beginnings of it are of no use beside it."""
        for key in entry.keys:
            for other in list(self._kept_ends.get(key, ())):
                if entry.tokens[: len(other.tokens)] == other.tokens:
                    self._free(other)
        runner = self._runner
        assert isinstance(runner, Parks)
        runner.park(entry.seq)
        self._add(entry)
        self._kept[entry] = None
        self._kept_ends.setdefault(entry.keys[-1], {})[entry] = None
        self._kept_tokens += len(entry.tokens)
        while len(self._kept) > KEPT_SEQUENCES or self._kept_tokens > self._limit():
            self.evict()

    def _limit(self) -> int:
        if not self._most_tokens:
            capacity = self._runner.capacity()
            total = capacity.free_tokens + capacity.used_tokens
            context = min(total, self._runner.info.max_context)
            self._most_tokens = max(1, context, min(KEPT_TOKENS, total // 2))
        return self._most_tokens

    def _free(self, entry: _Entry) -> None:
        self._drop(entry)
        del self._kept[entry]
        _remove(self._kept_ends, entry.keys[-1], entry)
        self._kept_tokens -= len(entry.tokens)
        self._runner.free(entry.seq)

    def _matches(self, job: Job) -> Sequence[tuple[_Entry, int]]:
        """Return what has a beginning in common with a job, and how much, as it was when entries last came or went.

        Many jobs may wait for one that computes their beginning, and would be compared with it before each step.
        """
        if job.matches is None or job.matches[0] != self._version:
            most = job.shareable
            found = [(entry, _common(job.tokens, entry.tokens, most)) for entry in self._candidates(job)]
            job.matches = self._version, found
        return job.matches[1]

    def _add(self, entry: _Entry) -> None:
        self._version += 1
        for key in entry.keys:
            self._index.setdefault(key, {})[entry] = None

    def _drop(self, entry: _Entry) -> None:
        self._version += 1
        for key in entry.keys:
            _remove(self._index, key, entry)

    def _candidates(self, job: Job) -> list[_Entry]:
        """Return entries that share most blocks with the job, youngest first."""
        found: dict[_Entry, None] = {}
        for key in _keys(job, job.shareable):
            entries = self._index.get(key)
            if entries is None:
                break
            found = entries
        return list(reversed(found))[:CANDIDATES]


def _remove(entries: dict[int, dict[_Entry, None]], key: int, entry: _Entry) -> None:
    found = entries.get(key)
    if found is not None:  # else two keys of one entry are equal
        found.pop(entry, None)
        if not found:
            del entries[key]


def _keys(job: Job, length: int) -> list[int]:
    """Return the key of every beginning of whole blocks of the first ``length`` tokens, shortest first."""
    keys = job.keys
    for end in range((len(keys) + 1) * BLOCK, length + 1, BLOCK):
        keys.append(hash((keys[-1] if keys else 0, *job.tokens[end - BLOCK : end])))
    return keys[: length // BLOCK]


def _common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Return the length of the common beginning, at most ``most``."""
    low, high = 0, min(most, len(a), len(b))
    while low < high:  # equal up to low; from high on, not looked at or different
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
