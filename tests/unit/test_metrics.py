from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import cast

import numpy as np
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
ernie_accel_step_seconds_bucket{le="1.0"} 3
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


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({"le": "x"}, "label 'le': Prometheus uses this name itself"),
        ({"__name__": "x"}, "label '__name__': Prometheus uses this name itself"),
        ({"rank": 3}, "label rank=3: must be a string"),
    ],
)
def test_labels_that_prometheus_would_misread(labels: dict[str, str], wanted: str) -> None:
    with pytest.raises(ea.ArgumentError, match=wanted):
        METRICS.to_prometheus(labels=labels)


def test_bounds_and_sums_are_exposed_as_they_are() -> None:
    bounds, total = (1000001.0, 1000002.0), cast(float, np.float64(0.1))
    histogram = ea.Histogram(bounds=bounds, counts=(1, 0, 0), total=total)
    text = ea.Metrics(counters={}, gauges={}, histograms={"x": histogram}).to_prometheus("a")
    assert 'a_x_bucket{le="1000001.0"} 1\na_x_bucket{le="1000002.0"} 1\n' in text
    assert "\na_x_sum 0.1\n" in text


def test_every_family_of_a_model_is_declared_once_before_its_values(
    load_mock: Callable[..., ea.Model],
) -> None:
    with load_mock("abc") as model:
        model.generate("x", max_tokens=3)
        metrics = model.metrics()
    declared: dict[str, str] = {}
    values: dict[str, float] = {}
    for line in metrics.to_prometheus().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in declared
            declared[name] = kind
            continue
        sample, _, value = line.rpartition(" ")
        assert sample not in values
        values[sample] = float(value)
        assert re.fullmatch(rf"{name}((_bucket|_sum|_count)\b.*)?", sample)
    assert {name for name, kind in declared.items() if kind == "histogram"} == {
        f"ernie_accel_{name}" for name in metrics.histograms
    }
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in declared.items())
    for name, histogram in metrics.histograms.items():
        own = f"ernie_accel_{name}"
        buckets = [value for sample, value in values.items() if sample.startswith(f"{own}_bucket")]
        assert buckets == sorted(buckets)
        assert values[f'{own}_bucket{{le="+Inf"}}'] == values[f"{own}_count"] == histogram.count


def test_the_median_of_a_number_of_things_is_whole() -> None:
    sizes, seconds = Series(SIZES), Series(SECONDS)
    for value in (1, 1, 1, 2):
        sizes.note(value)
        seconds.note(value / 1000)
    assert sizes.histogram().quantile(0.5) == 1
    assert sizes.histogram().quantile(1.0) == 2
    assert 0 < seconds.histogram().quantile(0.5) < 0.001
    assert math.isnan(Series(SIZES).histogram().quantile(0.5))
