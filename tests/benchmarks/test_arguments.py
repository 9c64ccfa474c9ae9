"""The command line of scripts/bench; nothing is installed to read it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from benchmarks.end_to_end.arguments import COMMANDS, parse
from benchmarks.end_to_end.engines import DEFAULT, ENGINES

ROOT = Path(__file__).parents[2]


def test_compare_takes_any_workloads() -> None:
    chosen = parse(
        ["compare", "--prefill", "128", "512", "--batch", "1", "16", "--engines", "ours-int8", "llama-q8"]
    )
    assert (chosen.prefill, chosen.decode, chosen.batch) == ([128, 512], [], [1, 16])
    assert chosen.engines == ["ours-int8", "llama-q8"]


def test_presets_can_be_overridden() -> None:
    assert parse(["batch"]).batch == [16]
    assert parse(["batch", "--batch", "4", "--rounds", "3"]).batch == [4]
    moe = parse(["moe"])
    assert (moe.shape, moe.one_at_a_time, moe.rounds) == ("21B-A3B", True, 3)
    assert set(moe.engines) <= {name for name, entry in ENGINES.items() if entry.moe}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_preset_measures_something(command: str) -> None:
    chosen = parse([command])
    assert chosen.prefill or chosen.decode
    assert chosen.engines


def test_default_engines_are_all_four_peers_and_ours() -> None:
    modules = {ENGINES[name].module for name in DEFAULT}
    assert modules == {"ours", "llama", "openvino_cpu", "onnx_genai", "torch_cpu"}


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_an_adapter(name: str) -> None:
    assert util.find_spec(f"benchmarks.end_to_end.peers.{ENGINES[name].module}") is not None


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["decode", "--engines", "nobody"], []]
)
def test_nothing_is_installed_for_help_and_mistakes(arguments: list[str], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("models", "__pycache__")
    for name in ("scripts", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PIP_NO_INDEX": "1"}
    command = ["bash", str(tmp_path / "scripts/bench"), *arguments]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert made.returncode == (0 if "--help" in arguments else 2)
    assert "scripts/bench" in made.stdout + made.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"scripts", "benchmarks"}
