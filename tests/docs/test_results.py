"""Figures in the documentation are those of the results that are committed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.end_to_end.publish import PAGES, place, publish, results, table
from benchmarks.serving.publish import results as serving_results
from benchmarks.serving.publish import table as serving_table

ROOT = Path(__file__).parents[2]
RESULT: dict[str, Any] = {
    "name": "0.3B-decode-32x16",
    "command": "scripts/bench batch",
    "date": "2026-01-02",
    "machine": {"processor": "P", "cores": "2", "memory": "4.0 GiB", "system": "S", "python": "3.10.0"},
    "versions": {"numpy": "2.0"},
    "shape": "0.3B",
    "workload": {"measures": "decode", "context": 32, "batch": 16, "steps": 8},
    "threads": 2,
    "rounds": 3,
    "read_bandwidth": {"median": 3e10, "low": 2e10, "high": 4e10, "rounds": 3, "values": [2e10, 3e10, 4e10]},
    "engines": {
        "ours-int8": {
            "title": "ernie_accel int8",
            "tokens_per_second": {"median": 60.0, "low": 50.0, "high": 70.0, "rounds": 3},
            "step_bytes": 12,
            "bandwidth_share": {"median": 0.8, "low": 0.7, "high": 0.9, "rounds": 3},
        },
        "onnx-int4": {
            "title": "onnxruntime-genai int4",
            "tokens_per_second": {"median": 15.0, "low": 10.0, "high": 20.0, "rounds": 3},
        },
    },
    "ratio": {"ours-int8": {"onnx-int4": {"median": 4.0, "low": 2.5, "high": 7.0, "rounds": 3}}},
}


def sections(page: Path) -> dict[str, str]:
    return dict(
        re.findall(r"<!-- bench ([\w.-]+) -->\n(.*?)\n?<!-- end -->", page.read_text("utf-8"), re.DOTALL)
    )


@pytest.mark.parametrize("page", PAGES)
def test_figures_on_the_page_are_the_committed_ones(page: str) -> None:
    for name, text in sections(ROOT / page).items():
        path = ROOT / f"benchmarks/results/{name}.json"
        result = json.loads(path.read_text("utf-8")) if path.exists() else None
        if result is None:
            expected = ""
        elif "experiment" in result:
            expected = serving_table(result)
        else:
            expected = table(result, PAGES[page])
        assert text == expected


def test_table_names_conditions() -> None:
    text = table(RESULT, "en")
    assert "| engine | tokens/s, median | lowest to highest | of the read bandwidth | int8 ÷ it |" in text
    assert "| ernie_accel int8 | 60.0 | 50.0 – 70.0 | 80% |  |" in text
    assert "| onnxruntime-genai int4 | 15.0 | 10.0 – 20.0 |  | 4.00 |" in text
    assert "`scripts/bench batch` on 2026-01-02: 0.3B shape" in text
    assert (
        "decoding at a context of 32, 8 tokens a round, 16 sequences (sum), 2 threads, 3 alternating rounds"
        in text
    )
    assert "30.0 GB/s (20.0 – 40.0). Best of the others: onnxruntime-genai int4." in text
    assert "16 个序列（合计）" in table(RESULT, "zh")


def test_publishing_replaces_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(
            "a\n<!-- bench 0.3B-decode-32x16 -->\nold\n<!-- end -->\nb\n", encoding="utf-8"
        )
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr("benchmarks.end_to_end.publish.plot", lambda result, title: f"<svg>{title}</svg>")
    assert len(publish(RESULT, tmp_path)) == 2 + len(PAGES)
    for page, language in PAGES.items():
        assert sections(tmp_path / page) == {"0.3B-decode-32x16": table(RESULT, language)}
        assert (tmp_path / page).read_text("utf-8").endswith("<!-- end -->\nb\n")
    assert json.loads((tmp_path / "benchmarks/results/0.3B-decode-32x16.json").read_text("utf-8")) == RESULT
    picture = (tmp_path / "benchmarks/results/0.3B-decode-32x16.svg").read_text("utf-8")
    assert "0.3B: decoding at a context of 32" in picture


def test_tables_can_be_placed_again(tmp_path: Path) -> None:
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("no marks\n", encoding="utf-8")
    assert place(RESULT, tmp_path) == []
    (tmp_path / "README.md").write_text("<!-- bench 0.3B-decode-32x16 -->\n<!-- end -->\n", encoding="utf-8")
    assert place(RESULT, tmp_path) == [tmp_path / "README.md"]
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    for name in ("0.3B-decode-32x16.json", "accuracy-poet.json", "0.3B-prefill-512.svg"):
        (folder / name).touch()
    assert [path.name for path in results(tmp_path)] == ["0.3B-decode-32x16.json"]


@pytest.mark.parametrize("path", serving_results(ROOT), ids=lambda path: path.stem)
def test_every_result_of_serving_is_on_the_page(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    assert result["name"] == path.stem
    assert serving_table(result) == sections(ROOT / "docs/performance.md")[path.stem]
    assert path.with_suffix(".svg").exists() == (result["experiment"] == "arrivals")


@pytest.mark.parametrize("path", results(ROOT), ids=lambda path: path.stem)
def test_every_result_has_its_plot_and_its_rounds(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    assert path.with_suffix(".svg").exists()
    assert result["name"] == path.stem
    for made in result["engines"].values():
        assert len(made["tokens_per_second"]["values"]) == result["rounds"]
