from __future__ import annotations

import json
from pathlib import Path

import pytest

import ernie_accel as ea
from ernie_accel.bench import machine
from ernie_accel.cli.main import main

Out = pytest.CaptureFixture[str]
FAST = ["--prefill", "8", "--decode", "4", "--batch", "1", "2", "--rounds", "1", "--no-progress"]
native = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_bandwidth", lambda threads: 8e9)


@native
def test_tables_of_speed_and_profile(checkpoint_directory: Path, capsys: Out) -> None:
    assert main(["bench", str(checkpoint_directory), *FAST, "--profile", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny-ERNIE, int8, KV int8, 1 threads; read bandwidth 8.0 GB/s")
    speeds = text.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in speeds[1:]] == ["prefill-8", "decode-4", "decode-4x2"]
    assert text.count("outside the core") == 3


@native
def test_json_holds_machine_model_and_every_value(
    checkpoint_directory: Path, tmp_path: Path, capsys: Out
) -> None:
    file = tmp_path / "speed.json"
    assert main(["bench", str(checkpoint_directory), *FAST, "--json", str(file)]) == 0
    assert "decode-4x2" in capsys.readouterr().out
    made = json.loads(file.read_text("utf-8"))
    assert made["model"]["precision"] == "int8"
    assert set(made["machine"]) == {"processor", "cores", "memory", "system", "python"}
    assert [result["name"] for result in made["results"]] == ["prefill-8", "decode-4", "decode-4x2"]
    assert all(len(result["tokens_per_second"]["values"]) == 1 for result in made["results"])
    assert list(tmp_path.iterdir()) == [file]


@native
def test_json_on_standard_output_stands_alone(checkpoint_directory: Path, capsys: Out) -> None:
    assert main(["bench", str(checkpoint_directory), *FAST, "--profile", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results[1]["step_bytes"] > 0
    assert results[1]["profile"]["steps"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either MODEL or --shape"),
        (["somewhere", "--shape", "0.3B"], "either MODEL or --shape"),
        (["--shape", "1B"], "shape='1B': must be one of 0.3B"),
        (["--shape", "0.3B", "--rounds", "0"], "rounds=0"),
        (["--shape", "0.3B", "--prefill", "--decode"], "nothing to measure"),
        (["--shape", "0.3B", "--batch", "0"], "batch=0"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], said: str, capsys: Out) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
