"""How many parameters a model has, by class, whole or as one of several ranks holds it: arithmetic on the sizes alone.

Equal to summing the shapes of ``tensor_specs``, without making the names of ten thousand experts; a test compares.
Splits are those of Megatron-LM (Shoeybi et al. 2019): query heads, feed-forward widths and vocabulary are divided among
the tensor-parallel ranks; key and value heads too, and where there are fewer of them than ranks, each rank holds one
that others hold as well; experts are divided among expert-parallel ranks, or by their width among tensor-parallel ones;
routers and norms are on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.spec import ROLES

__all__ = ["CLASSES", "WHOLE", "Part", "active_counts", "kv_heads_of_rank", "parameter_counts"]

CLASSES = (*ROLES, "mtp")
"""Those of ``ROLES``, and what predicts further tokens (multi-token prediction)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank holds.

    Attributes:
        tensor: Ranks that share every matrix.
        expert: Ranks that share the experts of a layer; above 1 they divide experts instead of their width.
        layers: The layers of its pipeline stage; None holds all. The first stage has the embedding, the last the head,
            the final norm and the prediction of further tokens.
    """

    tensor: int = 1
    expert: int = 1
    layers: range | None = None


WHOLE = Part()


def kv_heads_of_rank(config: ModelConfig, tensor: int) -> int:
    """Key and value heads of one tensor-parallel rank: at least one, whoever else holds it."""
    return max(1, -(-config.num_key_value_heads // tensor))


def parameter_counts(config: ModelConfig, part: Part = WHOLE, *, mtp: bool = False) -> dict[str, int]:
    """Return the number of parameters by class; the largest rank's where sizes do not divide evenly.

    Args:
        config: Of the text model.
        part: What the rank holds.
        mtp: Whether multi-token prediction is loaded; without it its class is 0.
    """
    return dict(_counts(config, part, mtp))


@lru_cache(maxsize=512)
def _counts(config: ModelConfig, part: Part, mtp: bool) -> tuple[tuple[str, int], ...]:
    """Count; a plan compares dozens of ways to divide one model."""
    layers = range(config.num_hidden_layers) if part.layers is None else part.layers
    first, last = layers.start == 0, layers.stop == config.num_hidden_layers
    moe = sum(config.is_moe_layer(index) for index in layers)
    hidden, split = config.hidden_size, part.tensor
    table = -(-config.vocab_size // split) * hidden
    # A tied head is the embedding, which a last stage that is not the first needs a second time.
    head = last and (not config.tie_word_embeddings or not first)
    counts = dict.fromkeys(CLASSES, 0)
    counts["embedding"] = table if first else 0
    counts["attention"] = len(layers) * _attention(config, split)
    counts["ffn"] = (len(layers) - moe) * _ffn(hidden, config.intermediate_size, split)
    counts["experts"] = moe * _experts(config, part)
    counts["shared_experts"] = moe * _ffn(
        hidden, config.moe_intermediate_size * config.moe_num_shared_experts, split
    )
    counts["router"] = moe * config.moe_num_experts * (hidden + 1)
    counts["norm"] = hidden * (2 * len(layers) + last)
    counts["head"] = table if head else 0
    if mtp and last:
        counts["mtp"] = config.num_nextn_predict_layers * _mtp(config, split)
    return tuple(counts.items())


def active_counts(config: ModelConfig, part: Part = WHOLE, *, tokens: float = 1.0) -> dict[str, float]:
    """Return the parameters that a step of so many tokens reads, by class: of the experts those that are expected.

    Each token goes through ``moe_k`` of E experts. If it chose them evenly, n tokens would touch E (1 - (1 - k / E)^n)
    of them; the embedding is looked up, so it is left out unless it is the head.
    """
    counts: dict[str, float] = dict(parameter_counts(config, part))
    if config.tie_word_embeddings and counts["head"] == 0:
        counts["head"] = counts["embedding"]
    counts["embedding"] = 0.0
    if config.is_moe:
        counts["experts"] *= 1 - (1 - config.moe_k / config.moe_num_experts) ** tokens
    return counts


def _attention(config: ModelConfig, split: int) -> int:
    heads = -(-config.num_attention_heads // split)
    return 2 * config.hidden_size * config.head_dim * (heads + kv_heads_of_rank(config, split))


def _ffn(hidden: int, width: int, split: int) -> int:
    return 3 * hidden * -(-width // split)


def _experts(config: ModelConfig, part: Part) -> int:
    if not config.is_moe:
        return 0
    if part.expert > 1:
        held = -(-config.moe_num_experts // part.expert)
        return held * _ffn(config.hidden_size, config.moe_intermediate_size, 1)
    return config.moe_num_experts * _ffn(config.hidden_size, config.moe_intermediate_size, part.tensor)


def _mtp(config: ModelConfig, split: int) -> int:
    """One block: two norms and a projection before an ordinary dense layer with its own norms."""
    hidden = config.hidden_size
    layer = _attention(config, split) + _ffn(hidden, config.intermediate_size, split)
    return layer + 2 * hidden * hidden + 4 * hidden
