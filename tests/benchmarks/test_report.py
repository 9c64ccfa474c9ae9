from __future__ import annotations

import pytest

from benchmarks.end_to_end.contest import Values
from benchmarks.end_to_end.plot import plot
from benchmarks.end_to_end.publish import table
from benchmarks.end_to_end.report import Result, best_peer, report
from ernie_accel.bench.workload import Workload

DECODE = Workload(measures="decode", context=32, batch=2, steps=8)
VALUES = {
    "ours-int8": Values([60.0, 50.0, 70.0], [1000.0, 1500.0, 2000.0], [10, 12, 14]),
    "llama-q8": Values([20.0, 15.0, 10.0], [900.0, 900.0, 900.0], [16, 16, 16]),
    "onnx-int4": Values([30.0, 25.0, 35.0], [800.0, 900.0, 900.0]),
}


def made() -> Result:
    return report("scripts/bench decode", "0.3B", 2, DECODE, VALUES)


def test_ratios_and_shares_are_taken_within_rounds() -> None:
    result = made()
    assert (result["name"], result["rounds"]) == ("0.3B-decode-32x2", 3)
    assert (result["read_bandwidth"]["low"], result["read_bandwidth"]["high"]) == (800.0, 2000.0)
    assert result["ratio"]["ours-int8"]["llama-q8"]["median"] == pytest.approx(50 / 15)
    assert set(result["ratio"]) == {"ours-int8"}
    # 30, 25 and 35 steps a second.
    assert result["engines"]["ours-int8"]["bandwidth_share"]["median"] == pytest.approx(0.245)
    assert "bandwidth_share" not in result["engines"]["onnx-int4"]
    assert result["engines"]["llama-q8"]["tokens_per_second"]["values"] == [20.0, 15.0, 10.0]


def test_a_label_keeps_results_of_one_workload_apart() -> None:
    assert report("c", "0.3B", 2, DECODE, VALUES, "backends")["name"] == "0.3B-backends-decode-32x2"


def test_best_peer_is_not_ours() -> None:
    assert best_peer(made()) == "onnx-int4"
    alone = report("c", "0.3B", 2, DECODE, {"ours-int8": VALUES["ours-int8"]})
    assert best_peer(alone) is None
    assert "÷" not in table(alone)


def test_prefill_writes_the_first_token_down() -> None:
    workload = Workload(measures="prefill", context=512)
    result = report("c", "0.3B", 2, workload, {"ours-int8": Values([1.0], [1.0], [], 42)})
    assert result["engines"]["ours-int8"]["first_token"] == 42
    assert "of the read bandwidth" not in table(result)


def test_requests_are_told_in_milliseconds() -> None:
    workload = Workload(measures="request", context=512, steps=64)
    values = {"ours-int8": Values([64.0], [1.0]), "torch-fp32": Values([16.0], [1.0])}
    header, _, first, second, *_ = table(report("c", "0.3B", 2, workload, values)).splitlines()
    assert header.startswith("| engine | a request, ms | tokens/s, median |")
    assert first.startswith("| ernie_accel int8 | 1000 | 64.0 |")
    assert second.startswith("| transformers fp32 | 4000 | 16.0 |")
    assert "a request, ms" not in table(made())


def test_peak_memory_is_a_column_where_it_is_known() -> None:
    assert "peak memory" not in table(made())
    known = Values([60.0], [1000.0], [], None, 3 << 29)
    lines = table(report("c", "0.3B", 2, DECODE, {"ours-int8": known, "llama-q8": Values([20.0], [900.0])}))
    assert "| peak memory |" in lines.splitlines()[0]
    assert "| 1.5 GiB |" in lines


def test_plot_names_every_engine_and_comes_out_the_same() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    picture = plot(made(), "what was measured")
    assert picture == plot(made(), "what was measured")
    for text in (
        "ernie_accel int8",
        "llama.cpp Q8_0",
        "onnxruntime-genai int4",
        "what was measured",
        "60",
        "15",
    ):
        assert f">{text}<" in picture
