"""Counting parameters without listing tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ernie_accel.architecture import ModelConfig, published_config, tensor_specs
from ernie_accel.architecture.counts import Part, active_counts, kv_heads_of_rank, parameter_counts
from ernie_accel.architecture.liveness import Buffer, activation_bytes, peak, step_buffers
from ernie_accel.architecture.split import Division, possible_ranks, share
from ernie_accel.architecture.vision import PUBLISHED_VISION, text_part
from ernie_accel.errors import CheckpointError
from ernie_accel.testing import tiny_config

CONFIGS = {
    "dense": tiny_config(),
    "moe": tiny_config(moe=True),
    "0.3B": published_config("0.3B"),
    "21B": published_config("21B-A3B"),
    "300B": published_config("300B-A47B"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_counts_are_the_sizes_of_all_tensors(config: ModelConfig) -> None:
    sizes: Counter[str] = Counter()
    for spec in tensor_specs(config).values():
        sizes[spec.role] += spec.size
    assert {name: n for name, n in parameter_counts(config).items() if n} == dict(sizes)


def test_counts_of_ranks_add_up_to_the_model() -> None:
    config = published_config("300B-A47B")
    whole = parameter_counts(config)
    rank = parameter_counts(config, Part(tensor=8))
    for name in ("embedding", "attention", "ffn", "experts", "head"):
        assert 8 * rank[name] == whole[name]
    assert rank["router"] == whole["router"]
    assert rank["norm"] == whole["norm"]
    stages = [parameter_counts(config, Part(layers=layers)) for layers in (range(20), range(20, 54))]
    assert {name: sum(stage[name] for stage in stages) for name in whole} == whole
    assert stages[0]["head"] == stages[1]["embedding"] == 0
    spread = parameter_counts(config, Part(expert=16))
    assert 16 * spread["experts"] == whole["experts"]
    assert spread["attention"] == whole["attention"]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["0.3B", "21B-A3B", "300B-A47B"])
def test_counts_of_a_rank_are_what_a_split_gives_it(name: str, ranks: int) -> None:
    config = published_config(name)
    if ranks not in possible_ranks(config, ranks):
        pytest.skip(f"{name} is not divided among {ranks}")
    division = Division(ranks)
    sizes: Counter[str] = Counter()
    for tensor, spec in tensor_specs(config).items():
        held = share(config, division, tensor, spec, 0)
        assert held is not None
        rows = held.stop - held.start + held.padding
        sizes[spec.role] += spec.size // spec.shape[held.axis] * rows
    assert {role: n for role, n in parameter_counts(config, Part(tensor=ranks)).items() if n} == dict(sizes)


def test_a_tied_head_lies_on_the_last_stage_too() -> None:
    config = published_config("21B-A3B")
    last = parameter_counts(config, Part(layers=range(14, 28)))
    assert last["embedding"] == 0
    assert last["head"] == config.vocab_size * config.hidden_size
    assert parameter_counts(config)["head"] == 0


def test_key_and_value_heads_are_copied_where_there_are_more_ranks() -> None:
    config = published_config("0.3B")  # two of them
    assert [kv_heads_of_rank(config, n) for n in (1, 2, 4, 8)] == [2, 1, 1, 1]
    two, four = (parameter_counts(config, Part(tensor=n))["attention"] for n in (2, 4))
    assert four > two / 2


def test_multi_token_prediction_counts_as_it_was_published() -> None:
    assert parameter_counts(published_config("21B-A3B"))["mtp"] == 0
    assert parameter_counts(published_config("21B-A3B"), mtp=True)["mtp"] == pytest.approx(123e6, rel=0.01)
    assert parameter_counts(published_config("300B-A47B"), mtp=True)["mtp"] == pytest.approx(0.99e9, rel=0.01)
    assert parameter_counts(published_config("0.3B"), mtp=True)["mtp"] == 0


def test_active_parameters_grow_with_the_tokens_of_a_step() -> None:
    config = published_config("21B-A3B")
    one, many = active_counts(config), active_counts(config, tokens=1e4)
    total = sum(one.values()) - one["head"]
    assert total == pytest.approx(3.08e9, rel=0.01)
    assert one["head"] == config.vocab_size * config.hidden_size  # the tied embedding, as the head
    assert many["experts"] == pytest.approx(parameter_counts(config)["experts"])
    assert one["embedding"] == 0


@pytest.mark.parametrize(("name", "total"), [("VL-28B-A3B", 29.4e9), ("VL-424B-A47B", 423.5e9)])
def test_vision_language_models_have_the_text_model_and_more(name: str, total: float) -> None:
    config, extras = text_part(PUBLISHED_VISION[name], name)
    text = {"VL-28B-A3B": "21B-A3B", "VL-424B-A47B": "300B-A47B"}[name]
    assert parameter_counts(config) == parameter_counts(published_config(text))
    assert sum(parameter_counts(config).values()) + sum(extras.values()) == pytest.approx(total, rel=0.001)
    assert extras["vision"] == pytest.approx(0.8e9, rel=0.05)


def test_a_vision_language_config_as_it_is_published_is_read() -> None:
    published: dict[str, Any] = {
        **PUBLISHED_VISION["VL-28B-A3B"],
        "rope_3d": True,
        "rope_scaling": {"type": "default", "mrope_section": [22, 22, 20]},
        "moe_capacity": [128, 128, 128],
        "pixel_hidden_size": 1280,
    }
    del published["max_position_embeddings"]  # as the -Paddle twin
    config, _ = text_part(published)
    assert config.moe_layer_end_index == 27
    assert config.moe_intermediate_size == 1536
    with pytest.raises(CheckpointError, match="vision"):
        text_part({**published, "vision_config": {}})


def test_the_peak_is_of_what_is_alive_together() -> None:
    buffers = (Buffer("a", 5, 0, 1), Buffer("b", 7, 1, 2), Buffer("c", 6, 2, 3))
    assert peak(buffers) == 13
    assert peak(buffers[:1]) == 5


def test_working_memory_grows_with_tokens_and_shrinks_with_ranks() -> None:
    config = published_config("21B-A3B")
    small, large = (activation_bytes(config, tokens=n, rows=1) for n in (512, 8192))
    assert 15 * small < large < 17 * small
    assert activation_bytes(config, tokens=8192, rows=1, tensor=4) < large
    names = {buffer.name for buffer in step_buffers(published_config("300B-A47B"), tokens=1, rows=1)}
    assert {"residual", "tokens by expert", "logits"} <= names
    few = activation_bytes(config, tokens=1, rows=64)
    assert few >= 3 * 64 * config.vocab_size * 4  # logits and what the draw makes of them
