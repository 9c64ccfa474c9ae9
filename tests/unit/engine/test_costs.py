from __future__ import annotations

import random

import pytest

from ernie_accel.engine.costs import MEMORY, PRIOR, StepCosts


def learned(durations: dict[int, float], rounds: int = 40) -> StepCosts:
    costs = StepCosts()
    for _ in range(rounds):
        for tokens, seconds in durations.items():
            costs.note(tokens, seconds)
    return costs


def ratio(costs: StepCosts, more: int, less: int) -> float:
    return costs.relative(more) / costs.relative(less)


def test_a_token_more_is_taken_to_cost_little_at_first() -> None:
    costs = StepCosts()
    assert costs.largest == 0
    assert ratio(costs, 5, 1) == pytest.approx((1 + 5 * PRIOR) / (1 + PRIOR))


def test_durations_are_learned_and_read_off_lines_between_them() -> None:
    costs = learned({1: 0.004, 2: 0.0044, 12: 0.006})
    assert costs.largest == 12
    assert ratio(costs, 2, 1) == pytest.approx(1.1, rel=0.01)
    assert ratio(costs, 12, 1) == pytest.approx(1.5, rel=0.01)
    assert ratio(costs, 7, 1) == pytest.approx(1.3, rel=0.01)
    assert ratio(costs, 24, 12) == pytest.approx((1 + 24 * PRIOR) / (1 + 12 * PRIOR))


def test_what_slows_the_whole_machine_does_not_change_how_they_compare() -> None:
    costs = learned({1: 0.004, 8: 0.006})
    for _ in range(50):
        costs.note(8, 0.012)
    assert ratio(costs, 8, 1) == pytest.approx(1.5, rel=0.2)
    for _ in range(50):
        costs.note(1, 0.008)
    assert ratio(costs, 8, 1) == pytest.approx(1.5, rel=0.2)


def test_noise_and_a_step_that_was_held_up_hardly_count() -> None:
    rng = random.Random(1)
    costs = StepCosts()
    for number in range(400):
        held = 50 if number % 40 == 7 else 1
        costs.note(1, 0.004 * rng.uniform(0.9, 1.1))
        costs.note(4, 0.005 * rng.uniform(0.9, 1.1) * held)
    assert ratio(costs, 4, 1) == pytest.approx(1.25, rel=0.1)


def test_what_was_not_used_for_long_is_forgotten() -> None:
    costs = learned({1: 0.004, 8: 0.016})
    before = ratio(costs, 8, 1)
    for _ in range(MEMORY + MEMORY // 8):
        costs.note(1, 0.004)
    assert costs.largest == 1
    assert ratio(costs, 8, 1) < 1.5 < before
