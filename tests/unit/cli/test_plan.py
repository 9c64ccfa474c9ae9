from __future__ import annotations

import json
from pathlib import Path

import pytest

from ernie_accel.bench import machine
from ernie_accel.cli.main import main

Out = pytest.CaptureFixture[str]


def test_a_plan_is_printed_and_the_exit_code_is_its_verdict(capsys: Out) -> None:
    assert main(["plan", "300B-A47B", "--devices", "8xA100", "--precision", "int8"]) == 0
    assert "tensor 8" in capsys.readouterr().out
    assert main(["plan", "300B-A47B", "--devices", "4xA100", "--precision", "int8"]) == 1
    assert "to make it fit" in capsys.readouterr().out


def test_other_forms_of_it(capsys: Out, tmp_path: Path) -> None:
    command = ["plan", "21B-A3B", "--devices", "2xA30", "--precision", "wint8", "--tensor-parallel", "2"]
    assert main([*command, "--json", "--plot", str(tmp_path / "plan.png")]) == 0
    assert json.loads(capsys.readouterr().out)["degrees"]["tensor"] == 2
    assert (tmp_path / "plan.png").exists()
    assert main([*command, "--explain"]) == 0
    assert "A decode step reads" in capsys.readouterr().out
    assert main([*command, "--to", "fastdeploy"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"] == "wint8"


def test_advice(capsys: Out) -> None:
    assert main(["plan", "21B-A3B", "--devices", "A100", "--advice", "latency"]) == 0
    assert "latency first" in capsys.readouterr().out
    assert main(["plan", "21B-A3B", "--advice", "latency", "--precision", "int8"]) == 2
    assert "--advice chooses it" in capsys.readouterr().err


def test_this_machine_is_measured_unless_told_not_to(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(machine, "read_bandwidth", lambda threads: 33e9)
    monkeypatch.setattr(machine, "dot_product_peak", lambda threads: 1e12)
    command = ["plan", "0.3B", "--devices", "cpu", "--backend", "reference"]
    assert main(command) == 0
    assert "Read bandwidth 33 GB/s and 1.00 TOPS in int8, measured now" in capsys.readouterr().out
    assert main([*command, "--no-probe"]) == 0
    assert "assumed" in capsys.readouterr().out


def test_mistakes_are_one_line_and_exit_code_two(capsys: Out) -> None:
    assert main(["plan", "0.3B", "--devices", "A101"]) == 2
    assert capsys.readouterr().err.startswith("error: devices='A101'")
    with pytest.raises(SystemExit):
        main(["plan", "0.3B", "--tensor-parallel", "two"])
