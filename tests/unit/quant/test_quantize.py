"""``ea.quantize``: a directory that loads at once, with its report; resumed, refused, complete or not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.architecture import tensor_specs
from ernie_accel.backends.registry import available
from ernie_accel.cli.main import main
from ernie_accel.quant import packing
from ernie_accel.quant.calculator import Calculator
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.testing.arrays import ArrayCheckpoint
from ernie_accel.testing.tokenizer import SAMPLE_TEXT, train_tokenizer

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

IDS = list(range(3, 40))
TEXT = "\n".join(SAMPLE_TEXT)
TEXTS = [TEXT] * 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny checkpoint with a tokenizer."""
    directory = tmp_path / "tiny"
    synthetic(tiny_config(vocab_size=640), dtype="float32").write(directory)
    train_tokenizer(SAMPLE_TEXT, directory)
    (directory / "generation_config.json").write_text('{"temperature": 0.5}')
    return directory


def logits(path: Any, **options: Any) -> Any:
    with ea.Model.load(path, backend="native", **options) as model:
        return model.logits(IDS)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_directory_computes_what_loading_does(source: Path, precision: Any, tmp_path: Path) -> None:
    report = ea.quantize(source, tmp_path / "packed", precision=precision)
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(source, precision=precision))
    with ea.Model.load(tmp_path / "packed") as model, ea.Model.load(source, precision=precision) as direct:
        assert model.tokenizer is not None
        assert model.info.precision == precision
        assert model.info.recipe == direct.info.recipe == report.recipe
        tokens = "2,048" if precision == "int8" else "8,192"
        assert f"calibrated on {tokens} tokens of the built-in text" in report.recipe
        assert (
            model.generate("the", max_tokens=4, seed=1).text
            == direct.generate("the", max_tokens=4, seed=1).text
        )
    names = {item.name for item in (tmp_path / "packed").iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "weights.eapack",
        "report.json",
    }
    for name in ("config.json", "tokenizer.model"):
        assert (tmp_path / "packed" / name).read_bytes() == (source / name).read_bytes()


def test_the_report_says_what_it_cost(source: Path, tmp_path: Path) -> None:
    report = ea.quantize(source, tmp_path / "packed", precision="int8", calibration=TEXTS)
    assert ea.QuantizationReport.load(tmp_path / "packed") == report
    assert report.accuracy is not None
    assert 0 < report.accuracy.kl < 0.1
    assert 0.5 < report.accuracy.top1 <= 1
    assert "text of the user's" in report.calibration
    assert len(report.errors) == 2 * 7 + 1
    assert 8 < report.bits_per_weight["ffn"] < 12
    assert report.file_bytes == (tmp_path / "packed" / "weights.eapack").stat().st_size
    assert report.total_bits_per_weight > 8
    for words in ("bits_per_weight", "top-1 agreement", "mean KL", "largest model.layers"):
        assert words in repr(report)
    assert report._repr_html_().startswith("<strong>QuantizationReport")
    report.save(tmp_path / "again.json")
    assert ea.QuantizationReport.load(tmp_path / "again.json") == report


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ea.CheckpointError, match=r"report\.json: cannot be read"):
        ea.QuantizationReport.load(tmp_path)
    (tmp_path / "report.json").write_text('{"accuracy": null, "source": "x"}')
    with pytest.raises(ea.CheckpointError, match=r"report\.json: is no report"):
        ea.QuantizationReport.load(tmp_path)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ([], "must be the path of a file, a list of texts"),
        (7, "must be the path of a file"),
        ([1, 2], "must be the path of a file"),
        (["a", [1]], "must be the path of a file"),
        ([[]], "empty"),
        ([[1, 2]], "holds 2 tokens and must hold at least 64; 2,048 of the kind of text"),
        ([[1, 5000] * 99], "5000"),
        ([[1, 2.5]], r"the id 2\.5: must be a whole number"),
        ([["1", "2"]], "the id '1': must be a whole number"),
        ([[1, None]], "the id None"),
        ([[True, 2]], "the id True"),
        ([[1, 2**70] * 99], "must be from 0 to"),
        ([[[1, 2]]], r"the id \[1, 2\]"),
        ([b"bytes"], "must be the path of a file"),
        ("no\0where.txt", "cannot be read"),
        ("nowhere.txt", r"'nowhere\.txt': cannot be read"),
    ],
)
def test_calibration_that_cannot_work(source: Path, calibration: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ea.ArgumentError, match=words):
        ea.quantize(source, tmp_path / "packed", precision="int8", calibration=calibration)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["tiny"]


def test_calibration_files(source: Path, tmp_path: Path) -> None:
    text, lines = tmp_path / "text.txt", tmp_path / "text.jsonl"
    text.write_text(TEXT)
    apart = TEXT + "\u2028"  # ends a line for Python, and not in JSON
    lines.write_text(
        json.dumps({"text": TEXT}) + "\n\n" + json.dumps(apart, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    one = ea.quantize(source, tmp_path / "one", precision="int8", calibration=text)
    two = ea.quantize(source, tmp_path / "two", precision="int8", calibration=str(lines))
    direct = ea.quantize(source, tmp_path / "direct", precision="int8", calibration=[TEXT])
    assert one.calibration == direct.calibration != two.calibration
    for name, words in (("{", "line 1: is no JSON"), ('{"other": 1}', "line 1: must be a string")):
        lines.write_text(name)
        with pytest.raises(ea.ArgumentError, match=words):
            ea.quantize(source, tmp_path / "three", precision="int8", calibration=lines)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint = synthetic(tiny_config())
    report = ea.quantize(checkpoint, tmp_path / "packed", precision="int8")
    assert "random ids" in report.calibration
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(checkpoint, precision="int8"))
    ids = [[(7 * i) % 128 for i in range(200)]]
    assert (
        "ids of the user's"
        in ea.quantize(checkpoint, tmp_path / "b", precision="int8", calibration=ids).calibration
    )
    arrays: Any = [np.array(ids[0])]
    as_arrays = ea.quantize(checkpoint, tmp_path / "d", precision="int8", calibration=arrays)
    assert as_arrays.errors == ea.QuantizationReport.load(tmp_path / "b").errors
    with pytest.raises(ea.TokenizerError, match="needs a tokenizer"):
        ea.quantize(checkpoint, tmp_path / "c", precision="int8", calibration=["text"])


def test_mixture_of_experts(tmp_path: Path) -> None:
    checkpoint = synthetic(tiny_config(moe=True))
    report = ea.quantize(checkpoint, tmp_path / "packed", precision="int4")
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(checkpoint, precision="int4"))
    assert report.bits_per_weight["router"] == 32


def test_without_data_progress_moves_within_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_accel.quant.directory.CALIBRATED", 1000)
    checkpoint = synthetic(tiny_config(moe=True))
    seen: list[tuple[str, int, int]] = []
    report = ea.quantize(
        checkpoint, tmp_path / "packed", precision="int4", progress=lambda *step: seen.append(step)
    )
    assert report.calibration == ""
    stages, done, totals = zip(*seen, strict=True)
    assert set(stages) == {"quantize"}
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
    assert len(set(done)) >= len(report.errors)  # one for each matrix
    assert all(0.01 < error < 0.2 for error in report.errors.values())


@pytest.mark.parametrize("stop", [1, 2])
def test_interrupted_and_resumed(
    stop: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"precision": "int4", "calibration": TEXTS}
    whole = ea.quantize(source, tmp_path / "whole", **options)

    def interrupt(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if len(calls) == stop:
            raise KeyboardInterrupt

    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ea.quantize(source, tmp_path / "m", progress=interrupt, **options)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ea.ArgumentError, match=r"m\.partial: holds an unfinished directory"):
        ea.quantize(source, tmp_path / "m", precision="int8", calibration=TEXTS)
    packed: list[str] = []
    original = packing.PackingJob._add_unit

    def add_unit(self: Any, writer: Any, packer: Any, current: Any, unit: Any) -> None:
        packed.append(unit.name)
        original(self, writer, packer, current, unit)

    monkeypatch.setattr(packing.PackingJob, "_add_unit", add_unit)
    resumed = ea.quantize(source, tmp_path / "m", **options)
    assert packed == ["layers.0", "layers.1", "head"][stop:]
    assert (tmp_path / "m" / "weights.eapack").read_bytes() == (
        tmp_path / "whole" / "weights.eapack"
    ).read_bytes()
    assert resumed.errors == whole.errors
    assert resumed.accuracy == whole.accuracy
    assert not (tmp_path / "m.partial").exists()


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ea.ArgumentError, match="precision='int3': must be one of int8, int4"):
        ea.quantize(source, tmp_path / "m", precision="int3")  # type: ignore[arg-type]
    with pytest.raises(ea.ArgumentError, match="exists and is not an empty directory"):
        ea.quantize(source, source, precision="int8")
    with pytest.raises(ea.ArgumentError, match="source=7: must be a path"):
        ea.quantize(7, tmp_path / "m", precision="int8")  # type: ignore[arg-type]
    ea.quantize(source, tmp_path / "m", precision="int8", calibration=TEXTS)
    with pytest.raises(ea.UnsupportedCheckpointError, match="is quantized to int8 already"):
        ea.quantize(tmp_path / "m", tmp_path / "again", precision="int4")


@pytest.mark.parametrize("target", ["", ".", "..", "/", "a\0b", 7, None])
def test_targets_that_are_no_names(
    source: Path, tmp_path: Path, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ea.ArgumentError, match="target="):
        ea.quantize(source, target, precision="int8")


def test_targets_that_another_directory_cannot_replace(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(ea.ArgumentError, match="exists and is not an empty directory"):
            ea.quantize(source, tmp_path / name, precision="int8")
    with monkeypatch.context() as patch:
        patch.setattr("os.path.ismount", lambda path: True)
        with pytest.raises(ea.ArgumentError, match="exists and is not an empty directory"):
            ea.quantize(source, tmp_path / "empty", precision="int8")
    with pytest.raises(ea.CheckpointError, match="cannot be written: File name too long"):
        ea.quantize(source, tmp_path / ("n" * 300), precision="int8")

    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_symlink", refused)
    with pytest.raises(ea.CheckpointError, match="cannot be written: Permission denied"):
        ea.quantize(source, tmp_path / "m", precision="int8")


def test_a_small_file_that_cannot_be_read_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "chat_template.jinja").symlink_to(source / "config.json")
    original = Path.read_bytes

    def refused(self: Path) -> bytes:
        if self.name == "chat_template.jinja":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(
        ea.CheckpointError, match=r"tiny/chat_template\.jinja: cannot be read: Permission denied"
    ):
        ea.quantize(source, tmp_path / "m", precision="int8", calibration=TEXTS)


def test_unfinished_directories_of_virtual_checkpoints_are_told_apart(tmp_path: Path) -> None:
    def arrays(seed: int) -> ArrayCheckpoint:
        made = synthetic(tiny_config(), seed=seed)
        return ArrayCheckpoint(
            made.config, {name: made.tensor(name).data for name in tensor_specs(made.config)}
        )

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ea.quantize(arrays(0), tmp_path / "m", precision="int8", progress=interrupt)
    with pytest.raises(ea.ArgumentError, match="made from another source"):
        ea.quantize(arrays(1), tmp_path / "m", precision="int8")
    ea.quantize(arrays(0), tmp_path / "m", precision="int8")


def test_memory_that_is_used_up_keeps_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"precision": "int4", "calibration": TEXTS}
    original, calls = Calculator.factor, iter(range(100))

    def exhausted(self: Any, *args: Any) -> Any:
        if next(calls) == 5:
            raise MemoryError("std::bad_alloc")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Calculator, "factor", exhausted)
        with pytest.raises(ea.CapacityError, match=r"quantizing takes about [\d,]+ bytes"):
            ea.quantize(source, tmp_path / "m", **options)
    assert (tmp_path / "m.partial").exists()
    ea.quantize(source, tmp_path / "m", **options)


def test_a_head_size_that_codes_cannot_have(tmp_path: Path) -> None:
    checkpoint = synthetic(replace(tiny_config(), head_dim=24))
    with pytest.raises(ea.UnsupportedCheckpointError, match="head_dim=24 is no multiple of 16"):
        ea.quantize(checkpoint, tmp_path / "m", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    target = str(tmp_path / "m")
    argv = [
        "quantize",
        str(source),
        target,
        "--precision",
        "int4",
        "--calibration",
        str(text),
        "--no-progress",
    ]
    assert main(argv) == 0
    assert "bits_per_weight" in capsys.readouterr().out
    assert main(argv) == 2
    assert "exists and is not an empty directory" in capsys.readouterr().err
    assert main(["info", target, "--verify"]) == 0
    captured = capsys.readouterr()
    assert "layout           packed" in captured.out
    assert "verified: " in captured.err
    weights = tmp_path / "m" / "weights.eapack"
    data = bytearray(weights.read_bytes())
    data[5000] ^= 1
    weights.write_bytes(data)
    assert main(["info", target]) == 0
    assert main(["info", target, "--verify"]) == 2
    assert "is damaged: its SHA-256" in capsys.readouterr().err
    assert main(["info", str(source), "--verify"]) == 2
    assert "no quantized directory" in capsys.readouterr().err
    json_target = str(tmp_path / "j")
    assert main([*argv[:2], json_target, *argv[3:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int4"


def test_the_plot(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    report = ea.quantize(source, tmp_path / "m", precision="int8", calibration=TEXTS)
    assert (tmp_path / "m" / "report.png").read_bytes().startswith(b"\x89PNG")
    report.plot(tmp_path / "again.svg")
    assert "<svg" in (tmp_path / "again.svg").read_text()
    with pytest.raises(ea.ArgumentError, match=r"again\.xyz"):
        report.plot(tmp_path / "again.xyz")


def test_without_matplotlib_there_is_no_plot(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.delitem(__import__("sys").modules, "ernie_accel.quant.plot", raising=False)
    report = ea.quantize(source, tmp_path / "m", precision="int8", calibration=TEXTS)
    assert not (tmp_path / "m" / "report.png").exists()
    with pytest.raises(ea.MissingExtraError, match=r"pip install 'ernie-accel\[plot\]' \(in a clone: "):
        report.plot()
