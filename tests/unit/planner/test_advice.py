"""Advice for three aims."""

from __future__ import annotations

import pytest

import ernie_accel as ea
from ernie_accel.errors import ArgumentError, UnsupportedError


def test_accuracy_takes_the_widest_precision_that_fits() -> None:
    roomy, tight = (ea.advise("21B-A3B", "accuracy", devices=devices) for devices in ("A100", "A100-40G"))
    assert roomy.plan.precision == "bf16"
    assert tight.plan.precision == "int8"
    assert any("bf16" in reason and "would not fit" in reason for reason in tight.reasons)


def test_latency_takes_the_fastest_and_memory_the_smallest() -> None:
    fast, small = (ea.advise("21B-A3B", aim, devices="A100") for aim in ("latency", "memory"))
    for other in ("bf16", "int8", "int4"):
        there = ea.plan("21B-A3B", devices="A100", precision=other)
        assert fast.plan.speed.per_sequence >= there.speed.per_sequence
        assert sum(small.plan.total().values()) <= sum(there.total().values())
    assert small.plan.precision == "int4"


def test_the_batch_to_start_with_leaves_a_share_free() -> None:
    found = ea.advise("21B-A3B", "accuracy", devices="A100", max_context=4096)
    device = found.plan.device
    taken = device.fixed + found.start_batch * 4096 * device.kv_per_token
    assert taken <= 0.7 * device.usable < taken + 4096 * device.kv_per_token
    assert 1 <= found.start_batch < found.plan.max_sequences
    assert f"Batch {found.start_batch}" in found.reasons[2]


def test_where_nothing_fits_it_says_so() -> None:
    found = ea.advise("300B-A47B", "memory", devices="A10")
    assert not found.plan.fits
    assert found.start_batch == 1
    assert "No precision fits" in found.reasons[0]


def test_advice_shows_itself() -> None:
    found = ea.advise("0.3B", "latency", devices="A100")
    assert "latency first" in repr(found)
    assert repr(ea.advise("0.3B", "latency-first", devices="A100")) == repr(found)  # type: ignore[arg-type]
    assert "int4" in repr(found)
    assert found._repr_html_().startswith("<strong>Advice")


def test_what_cannot_be_advised_is_refused() -> None:
    with pytest.raises(ArgumentError, match="accuracy, latency, memory"):
        ea.advise("0.3B", "speed")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="chooses it"):
        ea.advise("0.3B", precision="int8")
    with pytest.raises(UnsupportedError):
        ea.advise("baidu/ERNIE-4.5-300B-A47B-2Bits-Paddle", devices="H100")
