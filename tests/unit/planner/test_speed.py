"""The speed model: its ceilings by hand, its expectations beside published figures."""

from __future__ import annotations

import pytest

import ernie_accel as ea
from benchmarks.planning.published import FITTED, PUBLISHED, Figure, predicted


def test_the_ceiling_of_one_sequence_is_bytes_by_bandwidth() -> None:
    found = ea.plan("0.3B", devices="A100", precision="bf16", max_context=1)
    read = 2 * 360.7e6
    assert found.speed.decode_ceiling == pytest.approx(2039e9 / read, rel=0.01)
    assert found.speed.decode < found.speed.decode_ceiling


def test_active_experts_alone_are_read() -> None:
    found = ea.plan("21B-A3B", devices="H100", precision="bf16", max_context=1)
    assert 1 / found.speed.decode_ceiling == pytest.approx(2 * 3.35e9 / 3350e9, rel=0.02)
    many = ea.plan("21B-A3B", devices="H100", precision="bf16", max_context=1, max_batch=64)
    assert many.speed.per_sequence < 0.4 * found.speed.per_sequence  # nearly all experts are touched
    assert many.speed.decode > 10 * found.speed.decode


def test_a_prompt_is_limited_by_arithmetic_and_decoding_by_bandwidth() -> None:
    found = ea.plan("21B-A3B", devices="H100", precision="bf16", max_context=4096)
    assert found.speed.step.bound in ("memory bandwidth", "overhead")
    assert found.speed.prefill_ceiling == pytest.approx(989e12 / (2 * 3.35e9), rel=0.25)


def test_a_long_context_is_read_too() -> None:
    short, long = (
        ea.plan("0.3B", devices="A100", max_context=tokens).speed.decode_ceiling for tokens in (64, 131072)
    )
    cache = 131072 * 18432
    assert 1 / long - 1 / short == pytest.approx(cache / 2039e9, rel=0.01)


@pytest.mark.parametrize("figure", FITTED, ids=lambda figure: f"{figure.model}-{figure.devices}")
def test_the_constants_give_what_they_were_fitted_to(figure: Figure) -> None:
    expected, ceiling = predicted(figure)
    assert expected == pytest.approx(figure.rate, rel=0.02)
    assert figure.rate < ceiling


@pytest.mark.parametrize("figure", PUBLISHED, ids=lambda figure: f"{figure.model}-{figure.devices}")
def test_other_figures_are_met_within_what_the_guide_says(figure: Figure) -> None:
    expected, ceiling = predicted(figure)
    assert expected == pytest.approx(figure.rate, rel=0.3)
    assert figure.rate < ceiling


def test_eight_devices_are_communication_bound_where_four_are_not_much_slower() -> None:
    four, eight = (
        ea.plan("300B-A47B", devices=f"{n}xH100", precision="int4", tensor_parallel=n, max_context=2048)
        for n in (4, 8)
    )
    assert eight.speed.step.communication > four.speed.step.communication
    assert any("faster than 4" in warning for warning in eight.warnings)
