"""How a model is divided among ranks that compute it together: which part of every tensor a rank holds.

The split is that of Megatron-LM (Shoeybi et al. 2019): query heads, feed-forward widths and vocabulary are divided. A
rank's part of query, key, value, gate and up are rows (each rank computes other outputs of the same input), of output
and down columns (each rank computes a summand of the same output), so a layer needs two sums over the ranks. Key and
value heads are divided too; where there are fewer of them than ranks, several ranks hold the one that their query heads
read. Experts are cut like any feed-forward, or given out whole. Norms, the router and its correction bias, and what
leads into multi-token prediction are on every rank.

A vocabulary that the ranks do not divide is padded with rows of zeros, so that every rank holds equally many.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.spec import TensorSpec
from ernie_accel.errors import ArgumentError

__all__ = [
    "RULES_VERSION",
    "Division",
    "ExpertSplit",
    "Share",
    "check_division",
    "possible_ranks",
    "rank_config",
    "share",
]

RULES_VERSION = 1
"""Another number means that a rank would hold other parts of a model."""

ExpertSplit = Literal["cut", "whole"]
"""``"cut"``: a rank has a part of the width of every expert. ``"whole"``: a rank has some of the experts."""

_Unit = Literal["query heads", "key heads", "width", "vocabulary"]

_RULES: tuple[tuple[str, _Unit, Literal[0, 1]], ...] = (
    # (how a -PT name ends, what is divided, along which axis of [out, in]); whatever matches none is on every rank
    ("embed_tokens.weight", "vocabulary", 0),
    ("lm_head.weight", "vocabulary", 0),
    (".self_attn.q_proj.weight", "query heads", 0),
    (".self_attn.k_proj.weight", "key heads", 0),
    (".self_attn.v_proj.weight", "key heads", 0),
    (".self_attn.o_proj.weight", "query heads", 1),
    (".gate_proj.weight", "width", 0),
    (".up_proj.weight", "width", 0),
    (".down_proj.weight", "width", 1),
)
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True)
class Division:
    """Among how many ranks, and what becomes of experts."""

    ranks: int
    experts: ExpertSplit = "cut"

    def __post_init__(self) -> None:
        if isinstance(self.ranks, bool) or not isinstance(self.ranks, int) or self.ranks < 1:
            raise ArgumentError(f"ranks={self.ranks!r}: must be a whole number of at least 1")
        if self.experts not in get_args(ExpertSplit):
            raise ArgumentError(
                f"experts={self.experts!r}: must be one of {', '.join(get_args(ExpertSplit))}"
            )


class Share(NamedTuple):
    """``start:stop`` of the rows (axis 0) or columns (axis 1) of a tensor [out, in], then so many rows of zeros."""

    axis: Literal[0, 1]
    start: int
    stop: int
    padding: int = 0


def share(config: ModelConfig, division: Division, name: str, spec: TensorSpec, rank: int) -> Share | None:
    """Return the part of a tensor that a rank holds, None for an expert that another rank has.

    Args:
        config: One that ``check_division`` lets pass.
        division: Among how many ranks.
        name: ``-PT`` name of the tensor; of multi-token prediction too.
        spec: Its shape.
        rank: From 0.
    """
    expert = _EXPERT.search(name)
    if expert and division.experts == "whole":
        mine = int(expert[1]) // (config.moe_num_experts // division.ranks) == rank
        return Share(0, 0, spec.shape[0]) if mine else None
    for suffix, unit, axis in _RULES:
        if name.endswith(suffix):
            return _divided(config, division.ranks, unit, axis, spec.shape[axis], rank)
    return Share(0, 0, spec.shape[0])


def _divided(
    config: ModelConfig, ranks: int, unit: _Unit, axis: Literal[0, 1], length: int, rank: int
) -> Share:
    heads = config.num_key_value_heads
    if unit == "vocabulary":
        rows = -(-length // ranks)
        start, stop = min(rank * rows, length), min((rank + 1) * rows, length)
        return Share(axis, start, stop, rows - (stop - start))
    if unit == "key heads" and heads < ranks:
        head = rank * heads // ranks
        return Share(axis, head * config.head_dim, (head + 1) * config.head_dim)
    return Share(axis, rank * length // ranks, (rank + 1) * length // ranks)


def check_division(config: ModelConfig, division: Division) -> None:
    """Raise ArgumentError, saying what is possible, unless the model can be divided like that."""
    kv_heads, ranks = config.num_key_value_heads, division.ranks
    lengths = _lengths(config, division.experts)
    faults = [f"{length} {what}" for what, length in lengths.items() if length % ranks]
    words = [f"it does not divide {', '.join(faults)}"] if faults else []
    if kv_heads % ranks and ranks % kv_heads:
        words.append(f"it neither divides {kv_heads} key and value heads nor is a multiple")
    if not words:
        return
    possible = possible_ranks(config, config.num_attention_heads, experts=division.experts)
    other: ExpertSplit = "whole" if division.experts == "cut" else "cut"
    helps = config.is_moe and ranks in possible_ranks(config, ranks, experts=other)
    hint = f", or experts={other!r}" if helps else ""
    raise ArgumentError(
        f"ranks={ranks}: {' and '.join(words)}: must be one of {', '.join(map(str, possible))}{hint}"
    )


def possible_ranks(config: ModelConfig, most: int, *, experts: ExpertSplit = "cut") -> tuple[int, ...]:
    """Return the numbers of ranks, up to ``most``, among which the model can be divided.

    They divide the query heads and the feed-forward widths (with ``experts="whole"`` the number of experts instead of
    their width); of the key and value heads they are a divisor or a multiple.
    """
    heads = config.num_key_value_heads
    common = math.gcd(*_lengths(config, experts).values())
    return tuple(
        n for n in range(1, min(most, common) + 1) if common % n == 0 and (heads % n == 0 or n % heads == 0)
    )


def rank_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """Return the configuration of what one rank computes, experts cut: the same for all of them."""
    return replace(
        config,
        vocab_size=-(-config.vocab_size // ranks),
        num_attention_heads=config.num_attention_heads // ranks,
        num_key_value_heads=max(1, config.num_key_value_heads // ranks),
        intermediate_size=config.intermediate_size // ranks,
        moe_intermediate_size=config.moe_intermediate_size // ranks,
    )


def _lengths(config: ModelConfig, experts: ExpertSplit) -> dict[str, int]:
    """What the number of ranks must divide, by what it is called."""
    lengths = {"query heads": config.num_attention_heads}
    layers = range(config.num_hidden_layers)
    if config.num_nextn_predict_layers or not all(map(config.is_moe_layer, layers)):
        lengths["columns of a dense feed-forward"] = config.intermediate_size
    if config.is_moe and experts == "whole":
        lengths["experts"] = config.moe_num_experts
    elif config.is_moe:
        lengths["columns of an expert"] = config.moe_intermediate_size
    if config.is_moe and config.moe_num_shared_experts:
        shared = config.moe_num_shared_experts * config.moe_intermediate_size
        lengths["columns of the shared expert"] = shared
    return lengths
