from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_accel.engine.lookup import CANDIDATES, LONGEST, Lookup

Ids = list[int]


def phrases(seed: int, length: int) -> Ids:
    """Ids in which phrases come again, as in writing."""
    rng = random.Random(seed)
    parts = [[rng.randrange(20) for _ in range(rng.randrange(1, 9))] for _ in range(6)]
    ids: Ids = []
    while len(ids) < length:
        ids += rng.choice(parts)
    return ids[:length]


def common(ids: Ids, place: int) -> int:
    match = 0
    while match < min(place, LONGEST) and ids[place - match - 1] == ids[len(ids) - match - 1]:
        match += 1
    return match


def read(ids: Ids, prompt: int = 0) -> Lookup:
    lookup = Lookup(ids)
    lookup.learn(prompt)
    while lookup.known < len(ids):
        lookup.follow()
    return lookup


ids_of_few = st.lists(st.integers(0, 3), max_size=60) | st.builds(
    phrases, st.integers(0, 99), st.integers(0, 90)
)


@given(ids_of_few)
def test_a_place_has_the_past_that_it_claims(ids: Ids) -> None:
    lookup = read(ids)
    assert lookup.match == (min(common(ids, lookup.place), LONGEST) if lookup.place else 0)


@given(ids_of_few)
def test_no_place_has_much_more_in_common(ids: Ids) -> None:
    lookup = read(ids)
    matches = [common(ids, place) for place in range(1, len(ids))]
    if sum(match >= 2 for match in matches) <= CANDIDATES:
        assert lookup.match >= min(max(matches, default=0), CANDIDATES)


@given(ids_of_few)
def test_among_equals_the_latest_place_is_taken(ids: Ids) -> None:
    lookup = Lookup(ids)
    lookup.learn(len(ids))
    lookup.find()
    assert not any(common(ids, place) > lookup.match for place in range(lookup.place + 1, len(ids)))


@given(ids_of_few, st.integers(0, 90))
def test_a_prompt_learned_at_once_is_like_one_followed(ids: Ids, prompt: int) -> None:
    parts, whole = read(ids, min(prompt, len(ids))), read(ids)
    parts.find()
    whole.find()
    assert (parts.place, parts.match) == (whole.place, whole.match)


def test_a_guess_is_what_stood_there() -> None:
    lookup = read([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert (lookup.place, lookup.match) == (3, 3)
    assert lookup.guess(4) == [4, 5, 9, 1]


def test_a_guess_beyond_the_end_goes_on_as_it_repeats() -> None:
    lookup = read([7, 1, 2, 3, 1, 2, 3])
    assert lookup.guess(7) == [1, 2, 3, 1, 2, 3, 1]
    assert read([5, 8, 8]).guess(3) == [8, 8, 8]


def test_a_long_match_is_kept_while_it_holds() -> None:
    text = list(range(100, 140))
    ids = [*text, 1, *text[:20]]
    lookup = read(ids)
    assert (lookup.place, lookup.match) == (20, 20)
    ids += [*text[20:39], 3]
    while lookup.known < len(ids) - 1:
        lookup.follow()
    assert (lookup.place, lookup.match) == (39, LONGEST)
    lookup.follow()
    assert lookup.match == 0


@pytest.mark.parametrize("ids", [[], [4], [4, 5]])
def test_where_nothing_came_before_there_is_no_place(ids: Ids) -> None:
    lookup = read(ids)
    lookup.find()
    assert (lookup.place, lookup.match) == (0, 0)
