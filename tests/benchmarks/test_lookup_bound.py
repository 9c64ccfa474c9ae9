from __future__ import annotations

import pytest

from benchmarks.lookup_bound import DEEPEST, Text, best_places, costs, found, least_time


def test_costs_are_in_steps_of_one_row() -> None:
    cost = costs([2.0, 3.0, 4.0, 6.0, 8.0])
    assert cost[:3] == [1.0, 1.5, 2.0]
    assert len(cost) == DEEPEST + 1
    assert cost[-1] == pytest.approx((8.0 + 16 * 0.5) / 2)


def test_guesses_are_counted_where_lookup_finds_them() -> None:
    right, matches = found(Text([1, 2, 3, 4, 9], [1, 2, 3, 4, 8]))
    assert right == [0, 3, 2, 1, 0]
    assert matches[2] == 2


def test_a_better_place_counts_though_lookup_took_another() -> None:
    text = Text([7, 1, 2, 3, 5, 7, 9], [7, 1, 2, 3])
    assert best_places(text)[1] == 3
    assert found(text)[0][1] < 3  # the latest place after 7 was followed by 9


def test_time_is_the_least_over_all_depths() -> None:
    cost = [1.0, 1.1] + [5.0] * (DEEPEST - 1)  # a second row is cheap, a third dear
    assert least_time([0, 4, 3, 2, 1], cost) == pytest.approx(2.2)
    assert least_time([0, 0, 0], cost) == 2.0
    assert least_time([3], cost) == 0.0
