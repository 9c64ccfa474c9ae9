"""What one step keeps in memory at once, for engines that compute layer by layer and free what is not needed again.

A step is a list of buffers, each alive from one operation to another; the peak is the largest sum over operations. The
native core lays its working memory out itself (``csrc/model/scratch.cc``) and answers for it; this is for engines of
which no more is known than that they run the published formulas.
"""

from __future__ import annotations

from typing import NamedTuple

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.counts import kv_heads_of_rank

__all__ = ["Buffer", "activation_bytes", "peak", "step_buffers"]


class Buffer(NamedTuple):
    """Bytes that are alive from operation ``first`` to operation ``last``, both included."""

    name: str
    bytes: int
    first: int
    last: int


_EMBED, _NORM, _QKV, _ATTEND, _OUT, _POST_NORM, _ROUTE, _GATE_UP, _ACTIVATE, _DOWN, _ADD, _HEAD, _DRAW = (
    range(13)
)
_FLOAT = 4


def step_buffers(
    config: ModelConfig, *, tokens: int, rows: int, tensor: int = 1, item: int = 2
) -> tuple[Buffer, ...]:
    """List the buffers of the layer that needs most, and of the answer.

    Args:
        config: Of the text model.
        tokens: Of the step, all sequences together.
        rows: Positions whose logits are wanted.
        tensor: Tensor-parallel ranks; widths are those of one.
        item: Bytes of an activation.
    """
    hidden = tokens * config.hidden_size * item
    heads = -(-config.num_attention_heads // tensor) * config.head_dim
    keys = 2 * kv_heads_of_rank(config, tensor) * config.head_dim
    logits = rows * config.vocab_size * _FLOAT  # gathered over the ranks, in float32 for the draw
    return (
        Buffer("residual", hidden, _EMBED, _ADD),
        Buffer("normed", hidden, _NORM, _QKV),
        Buffer("query, key, value", tokens * (heads + keys) * item, _QKV, _ATTEND),
        Buffer("attended", tokens * heads * item, _ATTEND, _OUT),
        Buffer("attention output", hidden, _OUT, _POST_NORM),
        Buffer("normed again", hidden, _POST_NORM, _GATE_UP),
        *_feed_forward(config, tokens, tensor, item),
        Buffer("feed-forward output", hidden, _DOWN, _ADD),
        Buffer("logits", logits, _HEAD, _DRAW),
        Buffer("probabilities", 2 * logits, _DRAW, _DRAW),  # and the sorted copy that top-p looks at
    )


def peak(buffers: tuple[Buffer, ...]) -> int:
    """Return the most bytes that are alive at one operation."""
    last = max(buffer.last for buffer in buffers)
    return max(
        sum(buffer.bytes for buffer in buffers if buffer.first <= now <= buffer.last)
        for now in range(last + 1)
    )


def activation_bytes(config: ModelConfig, *, tokens: int, rows: int, tensor: int = 1, item: int = 2) -> int:
    """Return the peak of a step: see ``step_buffers``."""
    return peak(step_buffers(config, tokens=tokens, rows=rows, tensor=tensor, item=item))


def _feed_forward(config: ModelConfig, tokens: int, tensor: int, item: int) -> tuple[Buffer, ...]:
    """The wider of dense layers and layers of experts."""
    width = tokens * -(-config.intermediate_size // tensor) * item
    dense = (
        Buffer("gate and up", 2 * width, _GATE_UP, _ACTIVATE),
        Buffer("activated", width, _ACTIVATE, _DOWN),
    )
    if not config.is_moe:
        return dense
    slots = tokens * config.moe_k
    width = slots * -(-config.moe_intermediate_size // tensor) * item
    rows = slots * config.hidden_size * item
    experts = (
        Buffer("scores", tokens * config.moe_num_experts * 3 * _FLOAT, _ROUTE, _ROUTE),
        Buffer("tokens by expert", rows, _ROUTE, _GATE_UP),
        Buffer("gate and up", 2 * width, _GATE_UP, _ACTIVATE),
        Buffer("activated", width, _ACTIVATE, _DOWN),
        Buffer("outputs by expert", rows, _DOWN, _ADD),
    )
    return max(dense, experts, key=peak)
