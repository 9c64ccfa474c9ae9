"""Split and merge give the source again, bit for bit, whatever its shape and layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ernie_accel as ea
from ernie_accel.architecture.counts import Part, parameter_counts
from ernie_accel.architecture.split import ExpertSplit, possible_ranks
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.save import LayoutName
from ernie_accel.checkpoint.shard import merge, split, verify
from ernie_accel.errors import ArgumentError, CheckpointError, UnsupportedCheckpointError
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.architecture.test_split import random_config
from tests.unit.checkpoint.shard.common import add_tensors, contents, edit, multi_token, ranks_of, write

LAYOUTS: tuple[LayoutName, ...] = ("pt", "paddle")
EXPERTS: tuple[ExpertSplit, ...] = ("cut", "whole")


def round_trip(source: Path, work: Path, **how: Any) -> Path:
    """Split, verify and merge; return the directory of the ranks."""
    report = split(source, work / "ranks", progress=False, **how)
    read = verify(work / "ranks")
    assert read == sum(report.rank_bytes) == sum(verify(rank) for rank in ranks_of(work / "ranks"))
    assert merge(work / "ranks", work / "back") == report.source_bytes
    assert contents(work / "back") == contents(source)
    return work / "ranks"


@pytest.mark.parametrize("seed", range(24))
def test_any_shape_comes_back(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    layout, experts = LAYOUTS[seed % 2], EXPERTS[seed // 2 % 2]
    write(tmp_path / "m", config, layout=layout, shards=1 + seed % 3)
    for ranks in possible_ranks(config, 6, experts=experts):
        work = tmp_path / str(ranks)
        work.mkdir()
        round_trip(
            tmp_path / "m", work, ranks=ranks, experts=experts, file_bytes=[2000, 20_000, 1 << 30][seed % 3]
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_more_ranks_than_key_heads_odd_vocabulary_and_what_lies_beside(
    layout: LayoutName, ranks: int, tmp_path: Path
) -> None:
    config = tiny_config(num_key_value_heads=1, vocab_size=131, num_nextn_predict_layers=1)
    write(tmp_path / "m", config, layout=layout, bf16_tag="U16")
    table = load_file(tmp_path / "m" / "model.safetensors")
    embedding = next(data for name, data in table.items() if "embed" in name)
    head = np.ascontiguousarray(embedding.T) if layout == "paddle" else embedding  # a copy of the tied head
    extra = {
        "lm_head.weight": head,
        "vision_model.x": np.arange(7, dtype=np.float32),
        "vision_model.y": np.array(3),
    }
    add_tensors(tmp_path / "m", {**multi_token(config, layout), **extra})
    ranks_at = round_trip(tmp_path / "m", tmp_path, ranks=ranks)
    first = load_file(ranks_of(ranks_at)[0] / "model.safetensors")
    rows = -(-131 // ranks)
    prefix = "ernie." if layout == "paddle" else "model."
    assert first[f"{prefix}embed_tokens.weight"].shape == (rows, 64)
    assert first["lm_head.weight"].shape == ((64, rows) if layout == "paddle" else (rows, 64))
    assert first["vision_model.x"].shape == (7,)
    assert first[f"{prefix}mtp_linear_proj.0.weight"].size == 2 * 64 * 64
    attention = first[f"{prefix}mtp_block.0.self_attn.{'qkv' if layout == 'paddle' else 'q'}_proj.weight"]
    assert attention.size == 64 * (128 // ranks + (2 * 32 if layout == "paddle" else 0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("experts", EXPERTS)
def test_ranks_hold_as_many_bytes_as_the_plan_says(
    layout: LayoutName, experts: ExpertSplit, tmp_path: Path
) -> None:
    config = tiny_config(True, vocab_size=130, num_nextn_predict_layers=1, moe_num_shared_experts=2)
    write(tmp_path / "m", config, layout=layout, bf16_tag="U16")
    add_tensors(tmp_path / "m", multi_token(config, layout))
    report = split(tmp_path / "m", tmp_path / "r", ranks=4, experts=experts)
    part = Part(tensor=4, expert=4 if experts == "whole" else 1)
    counts = parameter_counts(config, part, mtp=True)
    expected = sum(count * (4 if name == "router" else 2) for name, count in counts.items())
    assert report.rank_bytes == (expected,) * 4


def test_the_plan_of_devices_that_share_a_model_is_what_they_get(tmp_path: Path) -> None:
    source = synthetic("21B-A3B", layers=2)
    planned = ea.plan(source.config, devices="4xA100", precision="bf16", tensor_parallel=4).device.weights
    small = tiny_config(True, vocab_size=130)
    report = split(synthetic(small), tmp_path / "r", ranks=4)
    weights = ea.plan(small, devices="4xA100", precision="bf16", tensor_parallel=4).device.weights
    assert report.rank_bytes == (sum(weights.values()),) * 4
    assert planned["experts"] == 64 * 3 * 2560 * 1536 // 4 * 2


def test_fused_matrices_in_the_other_orientation(tmp_path: Path) -> None:
    write(tmp_path / "m", tiny_config(num_key_value_heads=1), layout="paddle", bf16_tag="U16")
    file = tmp_path / "m" / "model.safetensors"
    turned = {
        name: np.ascontiguousarray(data.T) if name.endswith("_proj.weight") else data
        for name, data in load_file(file).items()
    }
    save_file(turned, file)
    ranks = round_trip(tmp_path / "m", tmp_path, ranks=4)
    first = load_file(ranks_of(ranks)[0] / "model.safetensors")
    assert first["ernie.layers.0.self_attn.qkv_proj.weight"].shape == (32 + 64, 64)
    assert first["ernie.layers.0.self_attn.o_proj.weight"].shape == (64, 32)


def test_a_virtual_checkpoint_becomes_what_writing_it_would_make(tmp_path: Path) -> None:
    source = synthetic(tiny_config(True), seed=5)
    split(source, tmp_path / "r", ranks=2, experts="whole")
    merge(tmp_path / "r", tmp_path / "back")
    source.write(tmp_path / "m")
    assert contents(tmp_path / "back") == contents(tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as opened:
        split(opened, tmp_path / "again", ranks=2, experts="whole")
    assert verify(tmp_path / "again") == verify(tmp_path / "r")


def test_a_rank_is_made_of_ordinary_files_that_are_described(tmp_path: Path) -> None:
    write(tmp_path / "m", tiny_config(True), bf16_tag="U16")
    split(tmp_path / "m", tmp_path / "r", ranks=2, file_bytes=100_000)
    rank = tmp_path / "r" / "rank-01-of-02"
    whole = load_file(tmp_path / "m" / "model.safetensors")
    manifest = json.loads((rank / "shard.json").read_text(encoding="utf-8"))
    index = json.loads((rank / "model.safetensors.index.json").read_text())
    assert (manifest["rank"], manifest["ranks"], manifest["experts"]) == (1, 2, "cut")
    assert set(manifest["tensors"]) == set(whole) == set(index["weight_map"])
    for name, entry in manifest["tensors"].items():
        assert index["weight_map"][name] == entry["file"]
        with safe_open(rank / entry["file"], framework="np") as file:
            found = file.get_tensor(name)
        if entry["axis"] is None:
            assert np.array_equal(found, whole[name])
        else:
            parts = [np.take(whole[name], range(*ends), axis=entry["axis"]) for ends in entry["ranges"]]
            assert np.array_equal(found, np.concatenate(parts, axis=entry["axis"]))
    assert (rank / "config.json").read_bytes() == (tmp_path / "m" / "config.json").read_bytes()
    assert (rank / "tokenizer_config.json").exists()


def test_the_ranks_are_no_model(tmp_path: Path) -> None:
    split(synthetic(tiny_config()), tmp_path / "r", ranks=2)
    with pytest.raises(
        CheckpointError, match=r"one rank has of .* no whole model.*ernie-accel shard .*/r TARGET --merge"
    ):
        ea.Model.load(str(tmp_path / "r" / "rank-00-of-02"), backend="reference")
    with pytest.raises(CheckpointError, match=r"holds the ranks.*ernie-accel shard .*/r TARGET --merge"):
        ea.Model.load(str(tmp_path / "r"), backend="reference")
    with pytest.raises(CheckpointError, match="no whole model"):
        split(tmp_path / "r" / "rank-00-of-02", tmp_path / "s", ranks=2)


def test_what_cannot_be_split_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path / "m", tiny_config())
    with pytest.raises(ArgumentError, match="must be one of 1, 2, 4"):
        split(tmp_path / "m", tmp_path / "r", ranks=3)
    with pytest.raises(ArgumentError, match="not an empty directory"):
        split(tmp_path / "m", tmp_path / "m", ranks=2)
    with pytest.raises(ArgumentError, match="file_bytes=0: must be"):
        split(tmp_path / "m", tmp_path / "r", ranks=2, file_bytes=0)
    with pytest.raises(ArgumentError, match="source=3: must be"):
        split(3, tmp_path / "r", ranks=2)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no such directory"):
        split(tmp_path / "none", tmp_path / "r", ranks=2)
    edit(tmp_path / "m" / "config.json", quantization_config={"quantization": "wint4"})
    with pytest.raises(UnsupportedCheckpointError, match="WINT4"):
        split(tmp_path / "m", tmp_path / "r", ranks=2)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m"]


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = split(
        synthetic(tiny_config()), tmp_path / "r", ranks=2, progress=lambda *event: seen.append(event)
    )
    merge(tmp_path / "r", tmp_path / "m", progress=lambda *event: seen.append(event))
    verify(tmp_path / "r", progress=lambda *event: seen.append(event))
    total = report.source_bytes
    ends = {stage: (done, of) for stage, done, of in seen}
    assert ends["shard"] == ends["merge"] == (total, total)
    assert ends["verify"] == (sum(report.rank_bytes),) * 2
