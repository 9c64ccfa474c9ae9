"""``ernie-accel export``: what is written, checked and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_accel import Model
from ernie_accel.checkpoint import open_checkpoint, save_checkpoint
from ernie_accel.cli.main import main
from ernie_accel.errors import (
    ArgumentError,
    BackendError,
    CheckpointError,
    MissingExtraError,
    UnsupportedCheckpointError,
    UnsupportedError,
)
from ernie_accel.export import onnx_file
from ernie_accel.exporting import export_graph
from ernie_accel.testing.synthetic import synthetic
from ernie_accel.testing.tiny import tiny_config

pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")

PROMPT = [3, 5, 8, 13]


def export(target: Path, moe: bool = False, **settings: Any) -> Any:
    with synthetic(tiny_config(moe=moe)) as checkpoint:
        return export_graph(checkpoint, target, progress=False, **settings)


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("fp16", 0.005), ("int8", 0.15)])
def test_the_graph_is_checked_against_the_reference(
    tmp_path: Path, precision: str, moe: bool, error: float
) -> None:
    report = export(tmp_path / "out", moe, precision=precision)
    assert report.checked_with.startswith("onnxruntime")
    assert 0 < report.relative_error < error
    assert report.max_error < 1e-4 or precision != "fp32"
    assert json.loads((tmp_path / "out/report.json").read_text())["max_error"] == report.max_error
    assert "relative" in repr(report)


def test_a_directory_with_a_graph_loads_and_gives_the_same(tmp_path: Path) -> None:
    export(tmp_path / "out")
    with synthetic(tiny_config()) as checkpoint, Model.load(checkpoint, backend="onnxruntime") as model:
        wanted = model.logits(PROMPT)
    with Model.load(tmp_path / "out", backend="onnxruntime", progress=False) as model:
        np.testing.assert_allclose(model.logits(PROMPT), wanted, atol=1e-5)
        assert (model.info.layout, model.info.precision) == ("onnx", "fp32")
        assert len(model.generate(PROMPT, max_tokens=5, ignore_eos=True).token_ids) == 5


def test_tokenizer_files_come_along(tmp_path: Path) -> None:
    poet = Path(__file__).parents[2] / "examples/poet/model"
    export_graph(poet, tmp_path / "out", progress=False)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (poet / "tokenizer.model").read_bytes()
    with Model.load(tmp_path / "out", backend="onnxruntime", progress=False) as model:
        assert model.generate("春", max_tokens=3, temperature=0).text


def test_the_graph_has_one_precision(tmp_path: Path) -> None:
    export(tmp_path / "out")
    with pytest.raises(UnsupportedError, match="holds a graph in fp32"):
        Model.load(tmp_path / "out", backend="onnxruntime", precision="int8", progress=False)


def test_a_backend_that_wants_tensors_says_what_the_directory_holds(tmp_path: Path) -> None:
    export(tmp_path / "out")
    with pytest.raises(CheckpointError, match="no tensors; load it with backend='onnxruntime'"):
        Model.load(tmp_path / "out", backend="reference", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "model.onnx").write_bytes(b"short"), "has 5 bytes, export.json says"),
        (lambda d: (d / "model.onnx").unlink(), "names 'model.onnx', which is not there"),
        (lambda d: (d / "export.json").write_text("{}"), "format is missing or damaged"),
        (lambda d: edit(d, "signature", {"version": 99}), "has version 99 and this release runs 1"),
        (lambda d: edit(d, "signature", {"version": 1, "x": 2}), "export the graph again"),
        (lambda d: edit(d, "files", {"../config.json": 3}), "which is not there"),
    ],
)
def test_a_damaged_directory_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    export(tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        Model.load(tmp_path / "out", backend="onnxruntime", progress=False)


def edit(directory: Path, key: str, value: Any) -> None:
    values = json.loads((directory / "export.json").read_text())
    (directory / "export.json").write_text(json.dumps({**values, key: value}))


def test_a_graph_of_another_configuration_is_refused(tmp_path: Path) -> None:
    export(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"does not fit config\.json"):
        Model.load(tmp_path / "out", backend="onnxruntime", progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "caffe"}, "format='caffe': must be one of onnx"),
        ({"precision": "int4"}, "precision='int4': onnx is written in fp32, fp16, int8"),
    ],
)
def test_what_is_not_written_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        export(tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(ArgumentError, match="exists and is not an empty directory"):
        export(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_export_cannot_be_exported(tmp_path: Path) -> None:
    export(tmp_path / "out")
    with pytest.raises(UnsupportedCheckpointError, match="is a graph already"):
        export_graph(tmp_path / "out", tmp_path / "again", progress=False)


def test_a_graph_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = onnx_file._Counted.load

    def wrong(self: Any, stored: Any) -> Any:
        values = load(self, stored)
        return values * 1.05 if stored.name == "layers.1.qkv" else values

    monkeypatch.setattr(onnx_file._Counted, "load", wrong)
    with pytest.raises(BackendError, match="computes something else than reference"):
        export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_file, "_write_values", full)
    with pytest.raises(CheckpointError, match="out: cannot be written: No space left on device"):
        export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ernie-accel\[export\]'"):
        export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_report_times_every_fusion(tmp_path: Path) -> None:
    report = export(tmp_path / "out", time_fusions=True)
    assert report.step_milliseconds > 0
    assert set(report.gains) == {"qkv", "gate_up", "rotary", "norm"}
    assert "without norm" in repr(report)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with synthetic(tiny_config()) as checkpoint:
        save_checkpoint(checkpoint, tmp_path / "in")
    arguments = ["export", str(tmp_path / "in"), str(tmp_path / "out"), "--no-progress"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "onnx"
    assert main(arguments) == 2
    assert "exists and is not an empty directory" in capsys.readouterr().err
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.info.layout == "onnx"
