"""What may name a model in a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ernie_accel.architecture import published_config
from ernie_accel.architecture.vision import PUBLISHED_VISION
from ernie_accel.checkpoint import save_checkpoint
from ernie_accel.errors import ArgumentError, CheckpointError, HubError, MissingExtraError
from ernie_accel.planner.precisions import precision_name
from ernie_accel.planner.subject import find_subject
from ernie_accel.testing import synthetic, tiny_config


@pytest.mark.parametrize(
    ("name", "hidden", "stored", "cut"),
    [
        ("0.3B", 1024, None, None),
        ("21b", 2560, None, None),
        ("300B-A47B", 8192, None, None),
        ("VL-28B", 2560, None, None),
        ("ERNIE-4.5-0.3B", 1024, None, None),
        ("ERNIE-4.5-VL-28B-A3B-PT", 2560, None, None),
        ("ERNIE-4.5-300B-A47B-2Bits-Paddle", 8192, "int2", None),
        ("VL-424B-A47B", 8192, None, None),
        ("baidu/ERNIE-4.5-21B-A3B-Thinking", 2560, None, None),
        ("PaddlePaddle/ERNIE-4.5-VL-28B-A3B-PT", 2560, None, None),
        ("baidu/ERNIE-4.5-300B-A47B-FP8-Paddle", 8192, "fp8", None),
        ("baidu/ERNIE-4.5-300B-A47B-W4A8C8-TP4-Paddle", 8192, "w4a8", 4),
        ("baidu/ERNIE-4.5-300B-A47B-2Bits-TP2-Paddle", 8192, "int2", 2),
    ],
)
def test_published_models_are_known_without_a_download(
    name: str, hidden: int, stored: str | None, cut: int | None
) -> None:
    found = find_subject(name)
    assert found.config.hidden_size == hidden
    assert (found.stored, found.cut_for) == (stored, cut)
    assert bool(found.extras) == ("VL" in name)


@pytest.mark.parametrize("name", ["7B", "ERNIE-4.5-7B", "no/such/directory", "", 7, None])
def test_what_names_no_model_is_refused(name: Any) -> None:
    with pytest.raises(ArgumentError, match="model="):
        find_subject(name)


def test_another_hub_id_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((HubError, MissingExtraError)):
        find_subject("somebody/ERNIE-4.5-0.3B-tuned")


def test_directories_files_and_mappings(tmp_path: Path) -> None:
    config = tiny_config(moe=True)
    save_checkpoint(synthetic(config), tmp_path / "model")
    keys = json.loads((tmp_path / "model" / "config.json").read_text())
    assert find_subject(tmp_path / "model").config.hidden_size == config.hidden_size
    assert find_subject(str(tmp_path / "model" / "config.json")).config.moe_k == config.moe_k
    assert find_subject(keys).config.vocab_size == config.vocab_size
    assert find_subject(config).config is config
    assert not find_subject(tmp_path / "model").virtual
    assert find_subject(synthetic(config)).virtual
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        find_subject(tmp_path / "empty")


def test_a_config_that_is_quantized_elsewhere_is_planned_as_it_lies() -> None:
    keys = {
        **published_config("300B-A47B").to_dict("paddle"),
        "quantization_config": {"quantization": "wint2"},
    }
    assert find_subject(keys).stored == "int2"
    assert find_subject(PUBLISHED_VISION["VL-28B-A3B"]).extras


def test_names_of_precisions() -> None:
    assert [precision_name(name) for name in ("auto", "WINT4", "2-bit", "w4a8", "bf16")] == [
        "auto",
        "int4",
        "int2",
        "w4a8",
        "bf16",
    ]
    with pytest.raises(ArgumentError, match="kv_precision='int3'"):
        precision_name("int3", what="kv_precision")
