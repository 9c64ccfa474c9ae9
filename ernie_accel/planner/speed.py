"""How fast a plan can be, and how fast to expect it: a roofline with the cost of exchanges.

A step reads every weight that its tokens need and the KV cache of its sequences, and multiplies: the slower of the two
is its time (Williams et al. 2009). Dividing a matrix over devices divides both, and adds two all-reduces a layer
(Shoeybi et al. 2019), each a fixed time and a time for its bytes. The ceiling takes bandwidth and arithmetic as
published and nothing else; what to expect takes the shares of them that engines reach, and the time that is lost
between kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ernie_accel.planner.links import LINKS
from ernie_accel.planner.memory import DeviceMemory
from ernie_accel.planner.processors import NORM, joined, reach_of, step_seconds
from ernie_accel.planner.setting import Setting
from ernie_accel.planner.work import Load, Work, works_of

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


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step, by what they go to.

    On accelerators ``memory`` (weights and KV cache) and ``arithmetic`` happen at the same time, so the larger counts.
    On processors neither hides the other whole (``planner/processors.py``), and attention counts for itself.
    """

    memory: float
    arithmetic: float
    communication: float
    overhead: float
    attention: float = 0.0
    norm: float | None = None
    """Memory and arithmetic together are the root of this degree of the sum of such powers; None: the larger."""

    @property
    def seconds(self) -> float:
        """All of it."""
        work = joined(self.memory, self.arithmetic, self.norm)
        return work + self.attention + self.communication + self.overhead

    @property
    def bound(self) -> str:
        """What takes most of it."""
        parts = {
            "memory bandwidth": self.memory,
            "arithmetic": self.arithmetic,
            "attention": self.attention,
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
    """Return what the backend of a setting reaches on accelerators."""
    return SERVING if setting.backend == "fastdeploy" else GRAPHS


def speed_of(setting: Setting, memory: tuple[DeviceMemory, ...]) -> Speed:
    """Return the speed of a setting."""
    stages = setting.degrees.pipeline
    sequences = setting.sequences_of_copy
    # As many groups of sequences are under way as there are stages to work on them.
    groups = min(stages, sequences)
    decoding = Load(sequences / groups, setting.context)
    tokens = min(setting.options.step_tokens or 512, setting.context)
    reading = Load(tokens, setting.context / 2, prompts=True)
    step, best = _step(setting, memory, decoding), _ceiling(setting, memory, decoding)
    chunk, most = _step(setting, memory, reading), _ceiling(setting, memory, reading)
    copies = setting.degrees.data
    return Speed(
        decode=setting.sequences / step.seconds,
        decode_ceiling=setting.sequences / best,
        per_sequence=1 / step.seconds,
        prefill=copies * stages * tokens / chunk.seconds,
        prefill_ceiling=copies * stages * tokens / most,
        step=step,
    )


def _step(setting: Setting, memory: tuple[DeviceMemory, ...], load: Load) -> StepTime:
    """One step through all stages, as it is to be expected."""
    works = works_of(setting, memory, load)
    if setting.on_cpu:
        return _on_processors(setting, works, load)
    layers, reached = setting.subject.config.num_hidden_layers, efficiency_of(setting)
    memory_seconds, arithmetic = _accelerated(setting, works)
    return StepTime(
        memory=memory_seconds / reached.bandwidth,
        arithmetic=arithmetic / reached.arithmetic,
        communication=_exchanges(setting, load.tokens),
        overhead=layers * reached.layer + reached.step,
    )


def _on_processors(setting: Setting, works: Sequence[Work], load: Load) -> StepTime:
    device, reached = setting.devices.device, reach_of(setting.backend, setting.precision)
    times = [
        step_seconds(
            work,
            reached,
            bandwidth=device.bandwidth,
            tera=_tera(setting),
            tera8=device.tera8,
            load=load,
        )
        for work in works
    ]
    drawn = 1 if load.prompts else load.tokens
    return StepTime(
        memory=sum(time[0] for time in times),
        arithmetic=sum(time[1] for time in times),
        attention=sum(time[2] for time in times),
        communication=_exchanges(setting, load.tokens),
        overhead=reached.step + drawn * reached.sequence,
        norm=NORM,
    )


def _ceiling(setting: Setting, memory: tuple[DeviceMemory, ...], load: Load) -> float:
    """Seconds that bandwidth and arithmetic allow."""
    return max(_accelerated(setting, works_of(setting, memory, load)))


def _accelerated(setting: Setting, works: Sequence[Work]) -> tuple[float, float]:
    """Seconds of reading and of multiplying at the full bandwidth and arithmetic, through all stages."""
    reading = sum(work.weights + work.head + work.cache for work in works) / setting.devices.device.bandwidth
    return reading, sum(work.products + work.attention for work in works) / (_tera(setting) * 1e12)


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
    payload = tokens * config.hidden_size * (4 if setting.on_cpu else 2)
    inside = degrees.tensor <= device.per_node
    link = device.link if inside else LINKS["network"]
    seconds = 2 * config.num_hidden_layers * link.all_reduce(payload, degrees.tensor)
    if degrees.expert > degrees.tensor:  # tokens go to their experts and back
        moe = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
        far = device.link if degrees.expert <= device.per_node else LINKS["network"]
        seconds += 2 * moe * far.all_reduce(payload * config.moe_k / 2, degrees.expert)
    between = LINKS["network"] if degrees.devices > device.per_node else device.link
    return seconds + (degrees.pipeline - 1) * (between.alpha + payload / between.bandwidth)
