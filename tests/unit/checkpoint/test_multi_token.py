"""Multi-token prediction on disk: found in both layouts, left alone unless asked for, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from ernie_accel.architecture import multi_token_specs, published_config
from ernie_accel.architecture.multi_token import EMB_NORM, PROJECTION
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.base import has_multi_token
from ernie_accel.checkpoint.multi_token import require_multi_token
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError
from ernie_accel.testing import synthetic, tiny_config

CONFIG = tiny_config(True, num_nextn_predict_layers=1)
Q = "model.mtp_block.0.self_attn.q_proj.weight"


def rewrite(path: Path, change: dict[str, npt.NDArray[Any] | None]) -> None:
    arrays = {**load_file(path / "model.safetensors"), **change}
    kept = {name: np.ascontiguousarray(data) for name, data in arrays.items() if data is not None}
    save_file(kept, path / "model.safetensors")


def set_layers(path: Path, layers: int) -> None:
    values = {**json.loads((path / "config.json").read_text()), "num_nextn_predict_layers": layers}
    (path / "config.json").write_text(json.dumps(values))


def make(path: Path, layout: Any = "pt") -> Path:
    synthetic(CONFIG, dtype="float32").write(path, layout=layout)
    return path


def refused(path: Path, words: str, kind: type[CheckpointError] = CheckpointError) -> None:
    """The model opens as before; what is asked for is refused."""
    with open_checkpoint(path) as opened:
        assert opened.tensor("model.norm.weight").data.shape == (64,)
        with pytest.raises(kind, match=words):
            require_multi_token(opened)


def test_there_are_twelve_tensors_and_two_thousandths_of_the_published_model() -> None:
    specs = multi_token_specs(published_config("21B-A3B"))
    assert len(specs) == 12
    assert all(name.startswith("model.mtp_") for name in specs)
    assert specs[PROJECTION].shape == (2560, 5120)
    assert round(sum(spec.size for spec in specs.values()) / 1e6) == 123


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["pt", "paddle"])
def test_both_layouts_give_the_same_tensors(layout: Any, dtype: Any, tmp_path: Path) -> None:
    source = synthetic(CONFIG, dtype=dtype)
    source.write(tmp_path / "m", layout=layout, shards=3)
    with open_checkpoint(tmp_path / "m") as opened:
        assert has_multi_token(opened)
        require_multi_token(opened)
        for name, spec in multi_token_specs(CONFIG).items():
            tensor = opened.tensor(name)
            assert tensor.data.shape == spec.shape
            np.testing.assert_array_equal(tensor.data, source.tensor(name).data)


def test_fused_matrices_lie_side_by_side_in_the_paddle_layout(tmp_path: Path) -> None:
    stored = load_file(make(tmp_path / "m", "paddle") / "model.safetensors")
    shapes = {name: data.shape for name, data in stored.items() if "mtp_" in name}
    assert shapes == {
        "ernie.mtp_emb_norm.0.weight": (64,),
        "ernie.mtp_hidden_norm.0.weight": (64,),
        "ernie.mtp_linear_proj.0.weight": (128, 64),
        "ernie.mtp_block.0.input_layernorm.weight": (64,),
        "ernie.mtp_block.0.post_attention_layernorm.weight": (64,),
        "ernie.mtp_block.0.self_attn.qkv_proj.weight": (64, 256),
        "ernie.mtp_block.0.self_attn.o_proj.weight": (128, 64),
        "ernie.mtp_block.0.mlp.up_gate_proj.weight": (64, 192),
        "ernie.mtp_block.0.mlp.down_proj.weight": (96, 64),
    }


@pytest.mark.parametrize("layout", ["pt", "paddle"])
def test_the_projection_may_lie_both_ways(layout: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "m", layout)
    name = PROJECTION if layout == "pt" else PROJECTION.replace("model.", "ernie.")
    rewrite(path, {name: load_file(path / "model.safetensors")[name].T})
    with open_checkpoint(path) as opened:
        wanted = synthetic(CONFIG, dtype="float32").tensor(PROJECTION).data
        np.testing.assert_array_equal(opened.tensor(PROJECTION).data, wanted)


def test_a_model_without_is_told_so(tmp_path: Path) -> None:
    synthetic(tiny_config(), dtype="float32").write(tmp_path / "m")
    refused(tmp_path / "m", "num_nextn_predict_layers is 0.*speculation='lookup'")


def test_tensors_that_are_missing_are_named(tmp_path: Path) -> None:
    path = make(tmp_path / "m")
    rewrite(path, {Q: None, EMB_NORM: None})
    refused(path, rf"misses tensors of multi-token prediction: {Q}, {EMB_NORM}")
    rewrite(path, dict.fromkeys(multi_token_specs(CONFIG)))
    refused(path, r"holds no tensors of multi-token prediction \(model.mtp_\*\), although config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({Q: np.zeros((64, 64), np.float32)}, r"q_proj.*shape \[64, 64\]: must be \[128, 64\]"),
        ({PROJECTION: np.zeros((64, 127), np.float32)}, r"linear_proj.*must be \[64, 128\]"),
        ({EMB_NORM: np.zeros((0,), np.float32)}, r"emb_norm.*must be \[64\]"),
        ({EMB_NORM: np.zeros((64,), np.int64)}, "dtype I64"),
        ({"model.mtp_block.1.x": np.zeros((1,), np.float32)}, "does not have: model.mtp_block.1.x"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_asked_for(change: Any, words: str, tmp_path: Path) -> None:
    path = make(tmp_path / "m")
    rewrite(path, change)
    refused(path, words)


def test_more_than_one_layer_is_not_run(tmp_path: Path) -> None:
    path = make(tmp_path / "m")
    set_layers(path, 2)
    refused(path, "num_nextn_predict_layers=2", UnsupportedCheckpointError)


def test_the_model_counts_without_it(tmp_path: Path) -> None:
    plain = synthetic(tiny_config(True), dtype="float32")
    with open_checkpoint(make(tmp_path / "m")) as opened:
        assert opened.info.parameters == plain.info.parameters
        assert opened.info.set_aside == tuple(sorted(multi_token_specs(CONFIG)))
