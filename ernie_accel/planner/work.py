"""What a step has to read and to compute: bytes and operations, whatever the devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.counts import Part, active_counts, parameter_counts
from ernie_accel.planner.memory import DeviceMemory, footprint_of
from ernie_accel.planner.setting import Setting

__all__ = ["Load", "Work", "works_of"]


class Load(NamedTuple):
    """The tokens of a step of one copy of the model, and how many tokens before them each looks at.

    ``prompts`` says that they are a block of one prompt, not the next token of as many sequences.
    """

    tokens: float
    context: float
    prompts: bool = False


class Work(NamedTuple):
    """What a step has to do on one device.

    Attributes:
        weights: Bytes of them that are read, without the head.
        head: Bytes of the head.
        cache: Bytes of keys and values that are read.
        active: How many weights are read.
        products: Operations by weights, two for each weight and token.
        attention: Operations of attention: products of queries with keys, and of weights with values.
    """

    weights: float
    head: float
    cache: float
    active: float
    products: float
    attention: float


def works_of(setting: Setting, memory: Sequence[DeviceMemory], load: Load) -> list[Work]:
    """Return the work of one device of each pipeline stage."""
    parts = setting.degrees.parts(setting.subject.config.num_hidden_layers)
    return [_work(setting, part, held, load) for part, held in zip(parts, memory, strict=True)]


def _work(setting: Setting, part: Part, held: DeviceMemory, load: Load) -> Work:
    config, tokens = setting.subject.config, load.tokens
    routed = tokens * (setting.degrees.data if part.expert > 1 else 1)
    active, whole = active_counts(config, part, tokens=routed), parameter_counts(config, part)
    read = sum(
        held.weights.get(name, 0) * active[name] / n for name, n in whole.items() if n and name != "head"
    )
    head = held.weights.get("head", 0) if whole["head"] else 0
    if whole["head"] == 0 and active["head"]:  # tied
        head = held.weights.get("embedding", 0) - footprint_of(setting).looked_up
    # A prompt is one sequence, whose cache is read once for all tokens of the chunk.
    cached = (1 if load.prompts else tokens) * load.context * held.kv_per_token
    return Work(
        weights=read,
        head=head,
        cache=cached,
        active=sum(active.values()),
        products=2 * _products(config, part, active, load),
        attention=_attention(config, part, tokens, load.context),
    )


def _products(config: ModelConfig, part: Part, active: Mapping[str, float], load: Load) -> float:
    """Weights by tokens that are multiplied on one device; a prompt asks for the logits of its last token alone."""
    counts = dict(active)
    if config.is_moe:
        counts["experts"] = parameter_counts(config, part)["experts"] * config.moe_k / config.moe_num_experts
    head = counts.pop("head")
    return load.tokens * sum(counts.values()) + (1 if load.prompts else load.tokens) * head


def _attention(config: ModelConfig, part: Part, tokens: float, context: float) -> float:
    layers = config.num_hidden_layers if part.layers is None else len(part.layers)
    return 4 * tokens * context * layers * config.num_attention_heads * config.head_dim / part.tensor
