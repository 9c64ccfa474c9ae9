from __future__ import annotations

import math

import pytest

import ernie_accel as ea
from ernie_accel.metrics import SECONDS, SIZES, Series

METRICS = ea.Metrics(
    counters={"steps": 3},
    gauges={"waiting": 2},
    histograms={"step_seconds": ea.Histogram(bounds=(0.5, 1.0), counts=(1, 2, 1), total=3.25)},
)

EXPOSED = """\
# TYPE ernie_accel_steps_total counter
ernie_accel_steps_total 3
# TYPE ernie_accel_waiting gauge
ernie_accel_waiting 2
# TYPE ernie_accel_step_seconds histogram
ernie_accel_step_seconds_bucket{le="0.5"} 1
ernie_accel_step_seconds_bucket{le="1"} 3
ernie_accel_step_seconds_bucket{le="+Inf"} 4
ernie_accel_step_seconds_sum 3.25
ernie_accel_step_seconds_count 4
"""


def test_the_text_that_prometheus_reads() -> None:
    assert METRICS.to_prometheus() == EXPOSED


def test_labels_stand_at_every_value() -> None:
    lines = METRICS.to_prometheus("chat", {"model": 'a "b"\n\\'}).splitlines()
    own = r'model="a \"b\"\n\\"'
    assert lines[1] == f"chat_steps_total{{{own}}} 3"
    assert lines[5] == f'chat_step_seconds_bucket{{{own},le="0.5"}} 1'
    assert lines[-1] == f"chat_step_seconds_count{{{own}}} 4"
    assert all(own in line for line in lines if not line.startswith("#"))


@pytest.mark.parametrize(("prefix", "labels"), [("ernie-accel", None), ("", None), ("ea", {"1st": "x"})])
def test_names_that_prometheus_refuses(prefix: str, labels: dict[str, str] | None) -> None:
    with pytest.raises(ea.ArgumentError, match="letters, digits and _ are allowed"):
        METRICS.to_prometheus(prefix, labels)


def test_the_median_of_a_number_of_things_is_whole() -> None:
    sizes, seconds = Series(SIZES), Series(SECONDS)
    for value in (1, 1, 1, 2):
        sizes.note(value)
        seconds.note(value / 1000)
    assert sizes.histogram().quantile(0.5) == 1
    assert sizes.histogram().quantile(1.0) == 2
    assert 0 < seconds.histogram().quantile(0.5) < 0.001
    assert math.isnan(Series(SIZES).histogram().quantile(0.5))
