"""Damaged, unsafe and foreign directories end in one error that names file and tensor."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from ernie_accel.checkpoint import inspect, open_checkpoint
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError
from ernie_accel.testing import synthetic, tiny_config

Change = dict[str, npt.NDArray[Any] | None]
INDEX = "model.safetensors.index.json"


def make(path: Path, *, moe: bool = True, shards: int = 1, layout: Any = "pt", **overrides: Any) -> Path:
    synthetic(tiny_config(moe, **overrides), dtype="float32").write(path, shards=shards, layout=layout)
    return path


def rewrite(path: Path, change: Change, file: str = "model.safetensors") -> None:
    arrays = {**load_file(path / file), **change}
    save_file(
        {name: np.ascontiguousarray(data) for name, data in arrays.items() if data is not None}, path / file
    )


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def refused(path: Path, words: str, kind: type[CheckpointError] = CheckpointError) -> str:
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(path)
    with pytest.raises(kind, match=words):
        inspect(path)
    return str(caught.value)


def zeros(*shape: int) -> npt.NDArray[np.float32]:
    return np.zeros(shape, np.float32)


Q = "model.layers.0.self_attn.q_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.moe_statics.e_score_correction_bias"


def test_the_directory_must_exist_and_be_one(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such directory")
    (tmp_path / "bare").mkdir()
    refused(tmp_path / "bare", "config.json: is missing: give the directory that holds it")
    make(tmp_path / "m")
    refused(tmp_path / "m" / "model.safetensors", "give the directory")


def test_config_must_be_there_and_be_an_object(tmp_path: Path) -> None:
    path = make(tmp_path / "m") / "config.json"
    for text, words in (
        (b"[1]", "must hold one JSON object"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"NaN", "NaN"),
    ):
        path.write_bytes(text)
        assert "config.json" in refused(tmp_path / "m", words)
    path.write_bytes(b" " * (17 << 20))
    refused(tmp_path / "m", "larger than")
    path.unlink()
    refused(tmp_path / "m", r"config.json: is missing")


def test_generation_config_must_be_an_object(tmp_path: Path) -> None:
    make(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("3")
    refused(tmp_path / "m", r"generation_config.json: must hold")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({Q: None}, r"misses tensors: model.layers.0.self_attn.q_proj.weight"),
        (
            {"model.layers.0.self_attn.q_proj.bias": zeros(128)},
            r"does not have: model.layers.0.self_attn.q_proj.bias",
        ),
        (
            {"model.layers.3.mlp.up_proj.weight": zeros(2, 2)},
            r"does not have: model.layers.3.mlp.up_proj.weight",
        ),
        ({Q: zeros(64, 128)}, r"q_proj.weight': shape \[64, 128\]: must be \[128, 64\]"),
        ({Q: zeros(128 * 64)}, r"q_proj.weight': shape \[8192\]"),
        ({Q: np.zeros((128, 64), np.float64)}, r"q_proj.weight': dtype F64"),
        ({Q: np.zeros((128, 64), np.int32)}, r"q_proj.weight': dtype I32"),
        ({ROUTER: np.zeros((8, 64), np.float16)}, r"gate.weight': dtype F16: must be F32"),
        ({BIAS: np.zeros((1, 8), np.float16)}, r"correction_bias': dtype F16: must be F32"),
        ({BIAS: zeros(8)}, r"correction_bias': shape \[8\]: must be \[1, 8\]"),
        ({BIAS: None}, r"biases are missing: model.layers.1.*trained without"),
        ({ROUTER: None}, "layer 1 has no router"),
        ({"model.layers.0.mlp.gate.weight": zeros(8, 64)}, "layer 0 has a router"),
        ({"ernie.norm.weight": zeros(64)}, "two prefixes"),
        ({"ernie.layers.0.self_attn.qkv_proj.weight": zeros(64, 256)}, "misses tensors"),
    ],
)
def test_every_tensor_is_consumed_exactly_once(change: Change, words: str, tmp_path: Path) -> None:
    make(tmp_path / "m")
    rewrite(tmp_path / "m", change)
    refused(tmp_path / "m", words)


def test_many_names_are_shortened(tmp_path: Path) -> None:
    make(tmp_path / "m")
    rewrite(tmp_path / "m", {f"stray.{i:02d}": zeros(1) for i in range(30)})
    assert "stray.04 and 25 more" in refused(tmp_path / "m", r"stray\.00, ")


def test_paddle_tensors_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "m", layout="paddle")
    rewrite(tmp_path / "m", {"ernie.layers.1.self_attn.qkv_proj.weight": zeros(256, 64)})
    refused(tmp_path / "m", r"layers.1.self_attn.qkv_proj.weight': shape \[256, 64\]: must be \[64, 256\]")


def test_a_bias_may_only_be_missing_where_none_was_trained(tmp_path: Path) -> None:
    for flag in (True, None):
        path = make(tmp_path / str(flag), moe_use_aux_free=flag)
        rewrite(
            path,
            {
                name: None
                for name in load_file(path / "model.safetensors")
                if name.endswith("correction_bias")
            },
        )
        refused(path, "moe_use_aux_free: false")
    path = make(tmp_path / "one", moe_use_aux_free=False)
    rewrite(path, {BIAS: None})
    refused(path, "all of them")


@pytest.mark.parametrize(
    "file",
    [
        *(
            "../out.safetensors",
            "/etc/x.safetensors",
            "a/b.safetensors",
            "..\\x.safetensors",
            ".safetensors/",
        ),
        *("x\0.safetensors", "\ud800.safetensors", "", "model", 3, None, ["x.safetensors"]),
    ],
)
def test_a_shard_cannot_leave_the_directory(file: object, tmp_path: Path) -> None:
    make(tmp_path / "m", shards=2)
    edit_json(tmp_path / "m" / INDEX, lambda index: index["weight_map"].update({Q: file}))
    message = refused(tmp_path / "m", "plain name")
    assert INDEX in message
    assert Q in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_the_index_must_hold_a_map(weight_map: object, tmp_path: Path) -> None:
    make(tmp_path / "m", shards=2)
    edit_json(tmp_path / "m" / INDEX, lambda index: index.update(weight_map=weight_map))
    refused(tmp_path / "m", "weight_map")


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    path = make(tmp_path / "moved", shards=2)
    edit_json(path / INDEX, lambda index: index["weight_map"].update({Q: second}))
    refused(path, rf"{first}: holds tensors that .* does not place there: {Q}")
    path = make(tmp_path / "unlisted", shards=2)
    edit_json(path / INDEX, lambda index: index["weight_map"].pop(Q))
    refused(path, rf"does not place there: {Q}")
    path = make(tmp_path / "absent", shards=2)
    rewrite(path, {Q: None}, first)
    refused(path, rf"{first}: tensors of the index are missing: {Q}")
    path = make(tmp_path / "shard", shards=2)
    (path / second).unlink()
    refused(path, rf"files that are missing: {second}")
    path = make(tmp_path / "index", shards=2)
    (path / INDEX).unlink()
    refused(path, rf"but no {INDEX}")
    (path / second).unlink()
    refused(path, rf"but no {INDEX}")


def test_two_sets_of_weights_are_not_chosen_from(tmp_path: Path) -> None:
    make(tmp_path / "m", shards=2)
    save_file({"x": zeros(1)}, tmp_path / "m" / "model.safetensors")
    refused(tmp_path / "m", "remove one")


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "m", shards=2) / "model-00002-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    refused(tmp_path / "m", "model-00002-of-00002.safetensors: is truncated")


def test_a_pipe_or_a_dead_link_is_refused_without_waiting(tmp_path: Path) -> None:
    path = make(tmp_path / "m") / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    refused(tmp_path / "m", "not a regular file")
    path.unlink()
    path.symlink_to("nowhere")
    refused(tmp_path / "m", "cannot be read")


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model_state.pdparams", "consolidated.00.pth", "model.pt", "weights.pkl", "m.ckpt"],
)
def test_pickles_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    make(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / name)
    message = refused(tmp_path / "m", "pickle", UnsupportedCheckpointError)
    assert name in message
    assert "convert it to safetensors" in message
    refused(tmp_path / "m" / name, "pickle", UnsupportedCheckpointError)


def test_an_index_of_pickles_is_refused_with_the_reason(tmp_path: Path) -> None:
    make(tmp_path / "m", shards=2)
    edit_json(tmp_path / "m" / INDEX, lambda index: index["weight_map"].update({Q: "model_state.pdparams"}))
    refused(tmp_path / "m", "pickle", UnsupportedCheckpointError)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert inspect(tmp_path / "m").files == ("model.safetensors",)


def test_other_formats_and_empty_directories_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "m")
    (path / "model.safetensors").unlink()
    refused(path, "holds no model.safetensors")
    (path / "model.gguf").write_bytes(b"GGUF")
    refused(path, "model.gguf", UnsupportedCheckpointError)


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("model.layers.1.mlp.experts.0.down_proj.quant_weight", np.int8, "W4A8"),
        ("model.layers.1.mlp.experts.0.down_proj.weight_scale", np.float32, "W4A8"),
        ("model.layers.1.mlp.experts.0.down_proj.super_scales", np.uint16, "2-bit"),
        ("model.layers.1.mlp.experts.0.down_proj.code_zp", np.float32, "2-bit"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", np.float32, "FP8"),
        ("model.layers.0.self_attn.q_proj.qweight", np.int32, "GPTQ"),
    ],
)
def test_quantized_publications_are_recognised_by_their_tensors(
    name: str, dtype: Any, words: str, tmp_path: Path
) -> None:
    make(tmp_path / "m")
    rewrite(tmp_path / "m", {name: np.zeros(4, dtype)})
    message = refused(tmp_path / "m", words, UnsupportedCheckpointError)
    assert name in message
    assert "unquantized" in message


def test_eight_bit_floats_are_recognised_by_their_dtype(tmp_path: Path) -> None:
    path = make(tmp_path / "m") / "model.safetensors"
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header[Q].update(dtype="F8_E4M3", shape=[512, 64])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob[8 + length :])
    assert Q in refused(tmp_path / "m", "FP8", UnsupportedCheckpointError)


def test_quantized_publications_are_recognised_by_their_configuration(tmp_path: Path) -> None:
    path = make(tmp_path / "m") / "config.json"
    for settings, words in (
        ({"quantization": "wint2", "dense_quant_type": "wint8"}, "2-bit"),
        ({"quantization": "mix_quant", "moe_quant_type": "w4a8", "dense_quant_type": "wint8"}, "W4A8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quantization": "tensor_wise_fp8"}, "FP8"),
        ({"quantization": "something_new"}, "something_new"),
    ):
        edit_json(path, lambda config, settings=settings: config.update(quantization_config=settings))  # type: ignore[misc]
        refused(tmp_path / "m", words, UnsupportedCheckpointError)
    edit_json(path, lambda config: config.update(quantization_config=None))
    open_checkpoint(tmp_path / "m")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = make(tmp_path / "m") / "model.safetensors"
    opened = open_checkpoint(tmp_path / "m")
    os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor .* cannot be mapped"):
        opened.tensor("model.norm.weight")


def test_any_bytes_changed_in_any_header_open_or_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "m", shards=2, layout="paddle")
    files = sorted((tmp_path / "m").iterdir())
    chance = random.Random(7)
    for _ in range(300):
        path = chance.choice(files)
        blob = path.read_bytes()
        head = 8 + int.from_bytes(blob[:8], "little") if path.suffix == ".safetensors" else len(blob)
        changed = bytearray(blob)
        for _ in range(chance.choice((1, 1, 3))):
            changed[chance.randrange(head)] = chance.choice(b'0123456789-{}[]",:\0\xffaeE. ')
        path.write_bytes(changed)
        try:
            open_checkpoint(tmp_path / "m").tensor("model.norm.weight")
        except CheckpointError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017 - either outcome is right
        path.write_bytes(blob)
