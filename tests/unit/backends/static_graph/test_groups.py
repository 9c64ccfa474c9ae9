"""Which steps share a call of the graph."""

from __future__ import annotations

from itertools import chain

import numpy as np

from ernie_accel.backends.base import Step
from ernie_accel.backends.static_graph.cache import Cache, CachedSequence
from ernie_accel.backends.static_graph.groups import Item, make_groups
from ernie_accel.export.signature import Signature
from ernie_accel.testing.tiny import tiny_config

CACHE = Cache(Signature.of(tiny_config(), "fp32"), np.zeros, 1 << 20)


def item(index: int, count: int, past: int) -> Item:
    sequence = CachedSequence(CACHE)
    sequence.length = past
    ids = np.zeros(count, np.int32)
    return Item(index, Step(index, ids), sequence, ids)


def sizes(*steps: tuple[int, int]) -> list[list[int]]:
    groups = make_groups([item(i, count, past) for i, (count, past) in enumerate(steps)])
    return sorted(sorted(member.index for member in group) for group in groups)


def test_decoding_steps_share_a_call() -> None:
    assert sizes((1, 500), (1, 400), (1, 450)) == [[0, 1, 2]]


def test_a_few_more_ids_than_one_still_share_it() -> None:
    assert sizes((1, 500), (4, 400), (1, 450)) == [[0, 1, 2]]


def test_a_prompt_does_not_pad_those_who_decode() -> None:
    assert sizes((1, 500), (300, 0), (1, 450)) == [[0, 2], [1]]


def test_prompts_of_about_one_length_share_a_call() -> None:
    assert sizes((100, 0), (95, 0), (40, 0)) == [[0, 1], [2]]


def test_a_long_past_does_not_pad_the_short_ones() -> None:
    assert sizes((1, 30_000), *[(1, 100)] * 3) == [[0], [1, 2, 3]]


def test_every_step_is_in_one_group() -> None:
    rng = np.random.default_rng(0)
    steps = [(int(rng.integers(1, 200)), int(rng.integers(0, 2000))) for _ in range(40)]
    assert sorted(chain.from_iterable(sizes(*steps))) == list(range(40))


def test_no_steps_make_no_groups() -> None:
    assert make_groups([]) == []
