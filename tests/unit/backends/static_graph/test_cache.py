"""Where keys and values lie, and when they are copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ernie_accel.backends.static_graph.cache import BLOCK, Arena, Cache, CachedSequence
from ernie_accel.errors import CapacityError
from ernie_accel.export.signature import Signature
from ernie_accel.testing.tiny import tiny_config

SIGNATURE = Signature.of(tiny_config(), "fp32")


class Counting:
    """Memory that counts how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        self.calls += 1
        return np.zeros(shape, dtype)


@pytest.fixture
def memory() -> Counting:
    return Counting()


@pytest.fixture
def cache(memory: Counting) -> Cache:
    return Cache(SIGNATURE, memory, 1000)


def rows(count: int, value: float) -> npt.NDArray[np.float32]:
    s = SIGNATURE
    return np.full((2 * s.layers, s.kv_heads, count, s.head_dim), value, np.float32)


def grown(cache: Cache, count: int, value: float) -> CachedSequence:
    sequence = CachedSequence(cache)
    append(cache, sequence, count, value)
    return sequence


def append(cache: Cache, sequence: CachedSequence, count: int, value: float) -> None:
    cache.reserve(sequence, count)
    assert sequence.arena is not None
    sequence.arena.write(sequence, rows(count, value))


def held(sequence: CachedSequence) -> list[float]:
    assert sequence.arena is not None
    part = sequence.arena.data[:, sequence.row, :, : sequence.length]
    assert np.ptp(part, axis=(0, 1, 3)).max(initial=0) == 0
    return [float(x) for x in part[0, 0, :, 0]]


def test_appending_keeps_what_was_there_when_the_arena_grows(cache: Cache) -> None:
    sequence = grown(cache, 3, 1.0)
    append(cache, sequence, 2 * BLOCK, 2.0)
    assert held(sequence) == [1.0] * 3 + [2.0] * 2 * BLOCK


def test_decoding_takes_new_memory_only_once_a_block(cache: Cache, memory: Counting) -> None:
    sequence = grown(cache, 1, 0.0)
    memory.calls = 0
    for _ in range(4 * BLOCK):
        append(cache, sequence, 1, 1.0)
    assert memory.calls <= 4


def test_sequences_are_gathered_side_by_side_and_stay_there(cache: Cache, memory: Counting) -> None:
    sequences = [grown(cache, 10 + i, float(i)) for i in range(4)]
    arena, first, end = cache.gather(sequences)
    assert (first, end) == (0, 4)
    memory.calls = 0
    again = cache.gather(sequences[::-1])
    assert (again[0], memory.calls) == (arena, 0)
    assert all(layer[first:end].flags.c_contiguous for layer in arena.data)
    assert [held(s) for s in sequences] == [[float(i)] * (10 + i) for i in range(4)]


def test_one_that_joins_moves_alone(cache: Cache, memory: Counting) -> None:
    sequences = [grown(cache, 10, float(i)) for i in range(8)]
    arena = cache.gather(sequences)[0]
    other = grown(cache, 12, 9.0)
    memory.calls = 0
    assert cache.gather([*sequences, other])[0] is arena
    assert memory.calls == 0
    assert held(other) == [9.0] * 12


def test_gaps_are_closed(cache: Cache) -> None:
    sequences = [grown(cache, 10, float(i)) for i in range(8)]
    cache.gather(sequences)
    left = [sequences[i] for i in (1, 4, 7)]
    for sequence in set(sequences) - set(left):
        sequence.release()
    _, first, end = cache.gather(left)
    assert end - first == 3
    assert [held(s) for s in left] == [[1.0] * 10, [4.0] * 10, [7.0] * 10]


def test_rows_of_others_are_left_alone(cache: Cache) -> None:
    sequences = [grown(cache, 10, float(i)) for i in range(8)]
    cache.gather(sequences)
    _, first, end = cache.gather([sequences[0], sequences[7]])
    assert end - first == 2
    assert [held(s) for s in sequences] == [[float(i)] * 10 for i in range(8)]


def test_a_fork_shares_nothing(cache: Cache) -> None:
    parent = grown(cache, 10, 1.0)
    child = parent.fork(4)
    append(cache, child, 2, 2.0)
    append(cache, parent, 1, 3.0)
    parent.truncate(9)
    assert held(child) == [1.0] * 4 + [2.0] * 2
    assert held(parent) == [1.0] * 9


def test_a_row_that_is_used_again_holds_nothing_of_its_former_owner(cache: Cache) -> None:
    arena = cache.arena(1, BLOCK)
    first = CachedSequence(cache)
    arena.adopt(first, 0)
    arena.write(first, rows(5, np.nan))
    first.release()
    arena.take(grown(cache, 2, 1.0), 0)
    assert np.isfinite(arena.data).all()


def test_an_arena_of_one_long_past_is_left_when_the_long_one_is_gone(cache: Cache) -> None:
    sequences = [grown(cache, 900, 0.0), grown(cache, 10, 1.0), grown(cache, 11, 2.0)]
    long = cache.gather(sequences)[0]
    sequences[0].release()
    short = cache.gather(sequences[1:])[0]
    assert short.places < long.places
    assert held(sequences[2]) == [2.0] * 11


def test_places_end_at_the_context(cache: Cache) -> None:
    sequence = grown(cache, 999, 1.0)
    append(cache, sequence, 1, 1.0)
    assert isinstance(sequence.arena, Arena)
    assert sequence.arena.places == 1000


def test_memory_that_is_used_up_is_a_capacity_error() -> None:
    def none(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        raise MemoryError

    cache = Cache(SIGNATURE, none, 1000)
    with pytest.raises(CapacityError, match="no memory for 1 sequences of 192 tokens"):
        cache.reserve(CachedSequence(cache), 100)
