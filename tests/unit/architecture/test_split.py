"""Which part of a tensor a rank holds, and that a plan counts the same."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from ernie_accel.architecture import ModelConfig, published_config, tensor_specs
from ernie_accel.architecture.counts import Part, parameter_counts
from ernie_accel.architecture.spec import TensorSpec
from ernie_accel.architecture.split import Division, ExpertSplit, Share, check_division, possible_ranks, share
from ernie_accel.errors import ArgumentError
from ernie_accel.planner.degrees import tensor_degrees
from ernie_accel.testing import tiny_config

EXPERTS: tuple[ExpertSplit, ...] = ("cut", "whole")


def sizes(config: ModelConfig, division: Division, rank: int) -> Counter[str]:
    """Values of a rank by class."""
    found: Counter[str] = Counter()
    for name, spec in tensor_specs(config).items():
        part = share(config, division, name, spec, rank)
        if part is not None:
            length = part.stop - part.start + part.padding
            found[spec.role] += spec.size // spec.shape[part.axis] * length
    return found


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("name", ["0.3B", "21B-A3B", "300B-A47B"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_plan_counts_what_a_rank_holds(name: str, ranks: int, experts: ExpertSplit) -> None:
    config = published_config(name)
    if ranks not in possible_ranks(config, ranks, experts=experts):
        pytest.skip("this model cannot be divided so")
    division = Division(ranks, experts)
    counts = parameter_counts(config, Part(tensor=ranks, expert=ranks if experts == "whole" else 1))
    expected = {key: value for key, value in counts.items() if value}
    for rank in range(ranks):
        assert dict(sizes(config, division, rank)) == expected, rank


def test_a_plan_offers_the_degrees_that_can_be_split() -> None:
    for name in ("0.3B", "21B-A3B", "300B-A47B"):
        config = published_config(name)
        assert tensor_degrees(config, 64) == possible_ranks(config, 64)
        assert tensor_degrees(config, 64, by_expert=True) == possible_ranks(config, 64, experts="whole")
    assert possible_ranks(published_config("21B-A3B"), 64) == (1, 2, 4)  # 20 query heads
    assert possible_ranks(published_config("300B-A47B"), 64) == (1, 2, 4, 8, 16, 32, 64)


def random_config(seed: int) -> ModelConfig:
    draw = random.Random(seed)
    moe = draw.random() < 0.6
    unit = draw.choice((1, 2, 3, 4, 6))
    kv = draw.choice((1, 2, 3, 4))
    values: dict[str, Any] = {
        "num_attention_heads": kv * unit * draw.choice((1, 2, 4)),
        "num_key_value_heads": kv,
        "head_dim": draw.choice((2, 4, 6)),
        "intermediate_size": unit * draw.randint(1, 9),
        "vocab_size": draw.randint(3, 40),
        "hidden_size": draw.randint(2, 20),
    }
    if moe:
        values |= {
            "moe_num_experts": unit * draw.randint(1, 4),
            "moe_k": 1,
            "moe_intermediate_size": unit * draw.randint(1, 4),
            "moe_num_shared_experts": draw.choice((0, 1, 2)),
        }
    return tiny_config(moe, eos_token_id=2, bos_token_id=1, pad_token_id=0, **values)


@pytest.mark.parametrize("seed", range(60))
def test_every_value_is_on_a_rank_and_only_what_must_be_is_on_several(seed: int) -> None:
    config = random_config(seed)
    for experts in EXPERTS:
        for ranks in possible_ranks(config, 64, experts=experts):
            division = Division(ranks, experts)
            check_division(config, division)
            for name, spec in tensor_specs(config).items():
                _check_tensor(config, division, name, spec)


def _check_tensor(config: ModelConfig, division: Division, name: str, spec: TensorSpec) -> None:
    parts = [share(config, division, name, spec, rank) for rank in range(division.ranks)]
    held = [part for part in parts if part is not None]
    axis = held[0].axis
    assert {part.axis for part in held} == {axis}
    assert len({part.stop - part.start + part.padding for part in held}) == 1  # ranks are alike
    owners = Counter(row for part in held for row in range(part.start, part.stop))
    assert set(owners) == set(range(spec.shape[axis]))
    copies = set(owners.values())
    if ".experts." in name and division.experts == "whole":
        assert len(held) == 1
    elif "_proj" not in name and "embed" not in name and "lm_head" not in name:
        assert copies == {division.ranks}
    elif ".k_proj" in name or ".v_proj" in name:
        assert copies == {max(1, division.ranks // config.num_key_value_heads)}
    else:
        assert copies == {1}


@pytest.mark.parametrize("seed", range(30))
def test_a_rank_has_the_keys_that_its_queries_read(seed: int) -> None:
    config = random_config(seed)
    group = config.num_attention_heads // config.num_key_value_heads
    for ranks in possible_ranks(config, 64):
        for rank in range(ranks):
            held = {}
            for which in "qkv":
                name = f"model.layers.0.self_attn.{which}_proj.weight"
                part = share(config, Division(ranks), name, tensor_specs(config)[name], rank)
                assert part is not None
                held[which] = range(part.start // config.head_dim, part.stop // config.head_dim)
            assert held["k"] == held["v"]
            assert {head // group for head in held["q"]} == set(held["k"])
            # and in the order that grouped attention takes them in
            assert len(held["q"]) % len(held["k"]) == 0


def test_a_vocabulary_is_padded_at_its_end() -> None:
    config = tiny_config(vocab_size=10)
    spec = TensorSpec((10, 64), "embedding")
    parts = [share(config, Division(4), "model.embed_tokens.weight", spec, rank) for rank in range(4)]
    assert parts == [Share(0, 0, 3), Share(0, 3, 6), Share(0, 6, 9), Share(0, 9, 10, 2)]


def test_what_cannot_be_divided_is_refused_with_what_can() -> None:
    with pytest.raises(ArgumentError, match=r"ranks=3: it does not divide 4 query heads.*one of 1, 2, 4$"):
        check_division(tiny_config(), Division(3))
    with pytest.raises(ArgumentError, match=r"neither divides 3 key and value heads.*one of 1, 3, 6$"):
        check_division(tiny_config(num_attention_heads=6, num_key_value_heads=3), Division(2))
    odd = tiny_config(True, moe_intermediate_size=33, moe_num_shared_experts=0)
    with pytest.raises(ArgumentError, match=r"33 columns of an expert.*one of 1, or experts='whole'$"):
        check_division(odd, Division(2))
    check_division(odd, Division(2, "whole"))
    few = tiny_config(True, moe_num_experts=3)
    with pytest.raises(ArgumentError, match=r"3 experts.*or experts='cut'$"):
        check_division(few, Division(2, "whole"))


@pytest.mark.parametrize("ranks", [0, -1, True, 2.0, "2", None])
def test_ranks_is_a_number(ranks: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^ranks="):
        Division(ranks)
    with pytest.raises(ArgumentError, match=r"^experts='some': must be one of cut, whole"):
        Division(2, "some")  # type: ignore[arg-type]
