"""How fast a plan can be, and how fast to expect it: a roofline with the cost of exchanges.

A step reads every weight that its tokens need and the KV cache of its sequences, and multiplies: the slower of the two
is its time (Williams et al. 2009). Dividing a matrix over devices divides both, and adds two all-reduces a layer
(Shoeybi et al. 2019), each a fixed time and a time for its bytes. The ceiling takes bandwidth and arithmetic as
published and nothing else; what to expect takes the shares of them that engines reach, and the time that is lost
between kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.counts import Part, active_counts, parameter_counts
from ernie_accel.planner.links import LINKS
from ernie_accel.planner.memory import DeviceMemory
from ernie_accel.planner.setting import Setting

__all__ = ["Efficiency", "Speed", "StepTime", "efficiency_of", "speed_of"]


class Efficiency(NamedTuple):
    """What an engine reaches: shares of bandwidth and arithmetic, seconds lost a layer and a step."""

    bandwidth: float
    arithmetic: float
    layer: float
    step: float


GRAPHS = Efficiency(0.75, 0.6, 29e-6, 0.0)
"""A compiled engine with CUDA graphs: fitted, with the links of A100, to gpt-fast's Llama-2-7B on 1 to 8 of them."""

SERVING = GRAPHS._replace(step=2.4e-3)
"""An engine that schedules and samples on the host between steps: from the one published figure of FastDeploy, 291
tokens/s of 0.3B on an A800."""

NATIVE: Mapping[str, Efficiency] = {
    # docs/performance.md: 0.3B decodes 183, 128 and 63 tokens/s in int4, int8 and bf16 at 50 GB/s. Bytes are those of
    # all weights, of which greedy draws leave part of a quantised head out.
    "int4": Efficiency(0.84, 0.8, 0.0, 0.2e-3),
    "int8": Efficiency(0.97, 0.8, 0.0, 0.2e-3),
    "": Efficiency(0.92, 0.7, 0.0, 0.2e-3),
}
"""Shares of the read bandwidth and of the int8 peak as measured; a step of scheduling takes 0.2 ms."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step, by what they go to.

    ``memory`` (weights and KV cache) and ``arithmetic`` happen at the same time, so the larger counts.
    """

    memory: float
    arithmetic: float
    communication: float
    overhead: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return max(self.memory, self.arithmetic) + self.communication + self.overhead

    @property
    def bound(self) -> str:
        """What takes most of it."""
        parts = {
            "memory bandwidth": self.memory,
            "arithmetic": self.arithmetic,
            "communication": self.communication,
            "overhead": self.overhead,
        }
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens per second of all devices together, at the context that was planned for.

    Attributes:
        decode: To expect, all sequences together.
        decode_ceiling: What bandwidth and arithmetic allow.
        per_sequence: To expect, for each of them.
        prefill: Tokens of prompts, to expect.
        prefill_ceiling: What bandwidth and arithmetic allow.
        step: Where the time of a decode step goes.
    """

    decode: float
    decode_ceiling: float
    per_sequence: float
    prefill: float
    prefill_ceiling: float
    step: StepTime


def efficiency_of(setting: Setting) -> Efficiency:
    """Return what the backend of a setting reaches."""
    if setting.on_cpu:
        return NATIVE.get(setting.precision, NATIVE[""])
    return SERVING if setting.backend == "fastdeploy" else GRAPHS


def speed_of(setting: Setting, memory: tuple[DeviceMemory, ...], reached: Efficiency | None = None) -> Speed:
    """Return the speed of a setting; ``reached`` replaces what its backend is known to reach."""
    reached = efficiency_of(setting) if reached is None else reached
    perfect = Efficiency(1.0, 1.0, 0.0, 0.0)
    stages = setting.degrees.pipeline
    sequences = setting.sequences_of_copy
    # As many groups of sequences are under way as there are stages to work on them.
    groups = min(stages, sequences)
    step = _step(setting, memory, sequences / groups, setting.context, reached)
    best = _step(setting, memory, sequences / groups, setting.context, perfect, ceiling=True)
    tokens = setting.options.step_tokens or 512
    chunk = _step(setting, memory, tokens, setting.context / 2, reached, prompts=True)
    most = _step(setting, memory, tokens, setting.context / 2, perfect, ceiling=True, prompts=True)
    copies = setting.degrees.data
    return Speed(
        decode=setting.sequences / step.seconds,
        decode_ceiling=setting.sequences / best.seconds,
        per_sequence=1 / step.seconds,
        prefill=copies * stages * tokens / chunk.seconds,
        prefill_ceiling=copies * stages * tokens / most.seconds,
        step=step,
    )


def _step(
    setting: Setting,
    memory: tuple[DeviceMemory, ...],
    tokens: float,
    context: float,
    reached: Efficiency,
    *,
    ceiling: bool = False,
    prompts: bool = False,
) -> StepTime:
    """One step through all stages."""
    layers = setting.subject.config.num_hidden_layers
    parts = setting.degrees.parts(layers)
    times = [
        _stage(setting, part, held, tokens, context, reached, prompts)
        for part, held in zip(parts, memory, strict=True)
    ]
    return StepTime(
        memory=sum(time[0] for time in times),
        arithmetic=sum(time[1] for time in times),
        communication=0.0 if ceiling else _exchanges(setting, tokens),
        overhead=0.0 if ceiling else layers * reached.layer + reached.step,
    )


def _stage(
    setting: Setting,
    part: Part,
    held: DeviceMemory,
    tokens: float,
    context: float,
    reached: Efficiency,
    prompts: bool,
) -> tuple[float, float]:
    """Seconds of reading and of multiplying on one device."""
    config, device = setting.subject.config, setting.devices.device
    routed = tokens * (setting.degrees.data if part.expert > 1 else 1)
    active, whole = active_counts(config, part, tokens=routed), parameter_counts(config, part)
    read = sum(held.weights.get(name, 0) * active[name] / n for name, n in whole.items() if n)
    if whole["head"] == 0 and active["head"]:
        read += held.weights.get("embedding", 0)
    # A prompt is one sequence, whose cache is read once for all tokens of the chunk.
    read += (1 if prompts else tokens) * context * held.kv_per_token
    operations = 2 * tokens * _multiplied(config, part, active) + _attention(config, part, tokens, context)
    return (
        read / (device.bandwidth * reached.bandwidth),
        operations / (_tera(setting) * 1e12 * reached.arithmetic),
    )


def _multiplied(config: ModelConfig, part: Part, active: Mapping[str, float]) -> float:
    """Weights that one token is multiplied by on one device."""
    counts = dict(active)
    if config.is_moe:
        chosen = parameter_counts(config, part)["experts"] * config.moe_k / config.moe_num_experts
        counts["experts"] = chosen
    return sum(counts.values())


def _attention(config: ModelConfig, part: Part, tokens: float, context: float) -> float:
    """Products of queries with keys, and of weights with values."""
    layers = config.num_hidden_layers if part.layers is None else len(part.layers)
    return 4 * tokens * context * layers * config.num_attention_heads * config.head_dim / part.tensor


def _tera(setting: Setting) -> float:
    """Tera-operations a second of the arithmetic that the precision uses: weight-only formats multiply in 16 bits."""
    device, precision = setting.devices.device, setting.precision
    narrow = ("int8", "int4") if setting.on_cpu else ("fp8", "w4a8")
    if precision in narrow and device.tera8:
        return device.tera8
    return device.tera16 / 2 if precision == "fp32" else device.tera16


def _exchanges(setting: Setting, tokens: float) -> float:
    """Seconds of all exchanges of a step."""
    config, degrees, device = setting.subject.config, setting.degrees, setting.devices.device
    payload = tokens * config.hidden_size * 2
    inside = degrees.tensor <= device.per_node
    link = device.link if inside else LINKS["network"]
    seconds = 2 * config.num_hidden_layers * link.all_reduce(payload, degrees.tensor)
    if degrees.expert > degrees.tensor:  # tokens go to their experts and back
        moe = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
        far = device.link if degrees.expert <= device.per_node else LINKS["network"]
        seconds += 2 * moe * far.all_reduce(payload * config.moe_k / 2, degrees.expert)
    between = LINKS["network"] if degrees.devices > device.per_node else device.link
    return seconds + (degrees.pipeline - 1) * (between.alpha + payload / between.bandwidth)
