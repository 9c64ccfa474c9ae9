"""The speed model: its ceilings by hand, its expectations beside published figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

import ernie_accel as ea
from benchmarks.planning.published import FITTED, PUBLISHED, Figure, predicted
from benchmarks.planning.speed import RESULT, errors
from ernie_accel.planner.devices import Device, shared_out
from ernie_accel.planner.links import LINKS
from ernie_accel.planner.processors import joined, reach_of


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


CPU = Device(
    name="cpu", kind="cpu", memory=16 << 30, bandwidth=50e9, tera16=1.0, tera8=2.0, link=LINKS["memory"]
)


def on_cpu(precision: str, **rest: Any) -> ea.MemoryPlan:
    return ea.plan("0.3B", devices=CPU, **{"backend": "native", "precision": precision, **rest})


INT8 = reach_of("native", "int8")
MEASURED = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize(
    "row",
    MEASURED,
    ids=lambda row: "-".join(
        str(part) for part in (row["backend"], row["precision"], row["ranks"], *row["workload"].values())
    ),
)
def test_processors_give_what_was_measured_on_them_within_what_the_guide_says(row: dict[str, Any]) -> None:
    _, _, error = errors(row)
    assert abs(error) < (0.3 if row["backend"] == "native" else 0.4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_a_processor_reads_decoding_and_multiplies_prompts(precision: str) -> None:
    short, long = (on_cpu(precision, max_context=tokens).speed for tokens in (128, 8192))
    assert short.decode < short.decode_ceiling
    assert short.prefill < short.prefill_ceiling
    assert long.step.attention > 10 * short.step.attention
    assert long.decode < 0.8 * short.decode
    many = on_cpu(precision, max_context=128, max_batch=16).speed
    assert 4 * short.decode < many.decode < 16 * short.decode


def test_less_than_the_whole_head_is_read_to_draw_and_a_table_beside_it_not_at_all() -> None:
    """0.3B in int8: 262 MB of layers, and of the head of 111 MB the upper plane."""
    step = on_cpu("int8", max_context=128).speed.step
    assert step.memory * INT8.bandwidth * CPU.bandwidth == pytest.approx(262e6 + 58e6, rel=0.03)
    few, many = (on_cpu("int8", max_context=128, max_batch=n).speed.step for n in (4, 5))
    assert many.memory - few.memory == pytest.approx(
        0.46 * 111e6 / (INT8.bandwidth * CPU.bandwidth), rel=0.05
    )


def test_a_prompt_asks_for_the_logits_of_its_last_token_alone() -> None:
    bare = 2 * (360.7e6 - 105.9e6) * 512
    found = on_cpu("int8", max_context=512)
    attention = 4 * 512 * 256 * 18 * 16 * 128
    assert 512 / found.speed.prefill_ceiling == pytest.approx((bare + attention) / 2e12, rel=0.01)


def test_neither_memory_nor_arithmetic_hides_the_other_whole_on_a_processor() -> None:
    assert joined(3.0, 4.0, 2.0) == pytest.approx(5.0)
    assert joined(3.0, 4.0, None) == 4.0
    step = on_cpu("bf16", max_context=128, max_batch=16).speed.step
    rest = step.attention + step.communication + step.overhead
    assert max(step.memory, step.arithmetic) < step.seconds - rest < step.memory + step.arithmetic


def test_sums_over_processes_of_one_machine_take_longer_than_what_they_divide() -> None:
    """Measured: 92 ms a step in two processes, 40 in one."""
    one, two = (on_cpu("fp32", backend="paddle", max_context=128, tensor_parallel=ranks) for ranks in (1, 2))
    assert two.speed.step.communication == pytest.approx(36 * 1.6e-3, rel=0.05)
    assert two.speed.decode < 0.6 * one.speed.decode
    assert any("is slower than 1" in warning for warning in two.warnings)
    assert any("A sum over 2 processes" in note for note in two.assumptions)
    assert shared_out(CPU, 2).device.bandwidth == CPU.bandwidth / 2


def test_a_plan_says_what_its_speed_rests_on() -> None:
    known, guessed = on_cpu("int4"), on_cpu("fp32", backend="mock")
    assert any("native in int4 reaches 93% and 58%" in note for note in known.assumptions)
    assert any("mock in fp32 was never measured" in note for note in guessed.assumptions)
    assert all(note in known.explain() for note in known.assumptions)
    assert "attention" in known.explain()
