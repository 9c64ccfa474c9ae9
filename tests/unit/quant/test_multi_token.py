"""Multi-token prediction of quantised models: kept in directories, in the cache, and right where norms were folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.architecture.ernie4_5 import FINAL_NORM
from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.capabilities import Drafts
from ernie_accel.backends.registry import available
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.base import Checkpoint, has_multi_token
from ernie_accel.checkpoint.packed import PackedCheckpoint
from ernie_accel.quant.prepare import prepare
from ernie_accel.testing import synthetic, tiny_config

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

CONFIG = tiny_config(True, num_nextn_predict_layers=1)
IDS = list(range(3, 60))
MTP = ea.EngineOptions(speculation="mtp")


def drafts(checkpoint: Checkpoint, precision: Any) -> list[tuple[int, ...]]:
    options = LoadOptions(precision=precision, multi_token=True)
    runner = registry.choose("native").open(checkpoint, options)
    assert isinstance(runner, Drafts)
    seq = runner.open()
    runner.forward([Step(seq, IDS, rows=0)])
    return [*runner.draft([seq], [7], 3), *runner.draft([seq], [8], 3)]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_directory_drafts_what_loading_does(precision: Any, tmp_path: Path) -> None:
    source = synthetic(CONFIG, dtype="float32")
    ea.quantize(source, tmp_path / "packed", precision=precision, progress=False)
    with open_checkpoint(tmp_path / "packed") as packed:
        assert isinstance(packed, PackedCheckpoint)
        assert has_multi_token(packed)
        assert packed.packed("mtp.gate_up").precision == "int8"
        assert packed.info.parameters == source.info.parameters
        options = LoadOptions(precision=precision, multi_token=True)
        loaded = prepare(source, registry.choose("native"), options, None)
        assert drafts(packed, precision) == drafts(loaded, precision)


def test_what_an_interrupted_run_wrote_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_accel.checkpoint.packed.writer import PackedWriter

    def interrupted(self: PackedWriter, **given: Any) -> None:
        raise KeyboardInterrupt

    source = synthetic(CONFIG, dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(PackedWriter, "seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ea.quantize(source, tmp_path / "packed", precision="int8", progress=False)
    ea.quantize(source, tmp_path / "packed", precision="int8", progress=False)
    ea.quantize(source, tmp_path / "again", precision="int8", progress=False)
    whole, resumed = (open_checkpoint(tmp_path / name) for name in ("again", "packed"))
    assert drafts(resumed, "int8") == drafts(whole, "int8")


def test_a_directory_without_is_refused_by_name(tmp_path: Path) -> None:
    ea.quantize(
        synthetic(tiny_config(True), dtype="float32"), tmp_path / "packed", precision="int8", progress=False
    )
    with pytest.raises(ea.CheckpointError, match="num_nextn_predict_layers is 0"):
        ea.Model.load(tmp_path / "packed", engine=MTP, progress=False)


class Older(synthetic(CONFIG).__class__):  # type: ignore[misc]
    """A checkpoint whose config.json speaks of multi-token prediction that it lacks."""

    multi_token = False


def test_a_directory_made_without_says_what_to_do(tmp_path: Path) -> None:
    made = synthetic(CONFIG, dtype="float32")
    lacking = Older(made.config, "lacking", 0, "float32")
    ea.quantize(lacking, tmp_path / "packed", precision="int8", progress=False)
    with pytest.raises(ea.CheckpointError, match="holds no tensors of multi-token prediction"):
        ea.Model.load(tmp_path / "packed", engine=MTP, progress=False)


def test_nothing_is_folded_into_the_final_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states after it are what guesses begin with, and nobody would undo the factors there."""

    def factors(kind: Any, weights: Any, x: Any, *others: Any) -> Any:
        return np.exp2(np.arange(x.shape[1]) % 2).astype(np.float32)

    monkeypatch.setattr("ernie_accel.quant.fit.choose_factors", factors)
    source = synthetic(CONFIG, dtype="float32")
    options = LoadOptions(precision="int8", multi_token=True)
    made = prepare(source, registry.choose("native"), options, None)
    name = "model.layers.0.input_layernorm.weight"
    assert not np.array_equal(made.tensor(name).data, source.tensor(name).data)
    np.testing.assert_array_equal(made.tensor(FINAL_NORM).data, source.tensor(FINAL_NORM).data)


def test_the_cache_tells_both_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ernie_accel.quant.prepare.KEPT", 1)
    source = synthetic(CONFIG, dtype="float32")
    for engine in (None, MTP, None, MTP):
        with ea.Model.load(source, precision="int8", engine=engine, progress=False) as model:
            assert model.generate([5, 6, 7], max_tokens=8, temperature=0.0).usage.completion_tokens
    entries = [path for path in (tmp_path / "cache" / "quantized").iterdir() if path.name != "hashes"]
    assert len(entries) == 2
