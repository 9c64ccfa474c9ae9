"""Which ways to divide a model are possible, and which of them is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.split import possible_ranks
from ernie_accel.errors import ArgumentError
from ernie_accel.planner.memory import device_memory
from ernie_accel.planner.setting import Degrees, Setting
from ernie_accel.planner.speed import speed_of

__all__ = ["Wishes", "choose_degrees", "tensor_degrees"]

Degree = int | Literal["auto"]

_ENOUGH = 0.9
"""Fewer devices are preferred when they reach this share of the best speed."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How the caller wants a model divided; ``"auto"`` leaves it to the plan."""

    tensor: Degree = "auto"
    pipeline: Degree = 1
    data: Degree = "auto"
    expert: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ArgumentError(
                    f"{name}_parallel={value!r}: must be 'auto' or a whole number of at least 1"
                )


def tensor_degrees(config: ModelConfig, most: int, *, by_expert: bool = False) -> tuple[int, ...]:
    """Return the numbers of devices that can share every matrix; with ``by_expert`` experts are not cut."""
    return possible_ranks(config, most, experts="whole" if by_expert else "cut")


def choose_degrees(setting: Setting, wishes: Wishes) -> Setting:
    """Return the setting divided as wished; what is left open is what gives most tokens per second and fits.

    Raises:
        ArgumentError: The model cannot be divided like that, or there are not so many devices.
    """
    possible = [replace(setting, degrees=degrees) for degrees in _candidates(setting, wishes)]
    if not possible:
        raise _impossible(setting, wishes)
    if len(possible) == 1:
        return possible[0]
    memories = [device_memory(each) for each in possible]
    fitting = [(s, m) for s, m in zip(possible, memories, strict=True) if all(stage.fits for stage in m)]
    if not fitting:  # the one that is nearest to fitting
        room = [min(stage.headroom for stage in m) for m in memories]
        return possible[room.index(max(room))]
    rates = [speed_of(s, m).decode for s, m in fitting]
    enough = _ENOUGH * max(rates)
    good = [(s, rate) for (s, _), rate in zip(fitting, rates, strict=True) if rate >= enough]
    return min(good, key=lambda each: (each[0].degrees.devices, -each[1]))[0]


def _candidates(setting: Setting, wishes: Wishes) -> Iterator[Degrees]:
    config, count = setting.subject.config, setting.devices.count
    tensors = tensor_degrees(config, count, by_expert=wishes.expert)
    for tensor in [t for t in tensors if wishes.tensor in ("auto", t)]:
        layers = config.num_hidden_layers
        stages = range(1, min(count // tensor, layers) + 1)
        for pipeline in [p for p in stages if wishes.pipeline in ("auto", p)]:
            copies = count // (tensor * pipeline)
            most = copies if wishes.data != "auto" else min(copies, setting.sequences)
            for data in [d for d in range(1, most + 1) if wishes.data in ("auto", d) and _halves(d, most)]:
                expert = tensor * data if wishes.expert and config.is_moe else 1
                if expert <= max(1, config.moe_num_experts):
                    yield Degrees(tensor=tensor, pipeline=pipeline, data=data, expert=expert)


def _halves(data: int, most: int) -> bool:
    """Powers of two and the most: a plan for a thousand devices need not look at each number of copies."""
    return data == most or data & (data - 1) == 0


def _impossible(setting: Setting, wishes: Wishes) -> ArgumentError:
    config, count = setting.subject.config, setting.devices.count
    possible = ", ".join(map(str, tensor_degrees(config, 64, by_expert=wishes.expert)))
    wanted = f"tensor {wishes.tensor}, pipeline {wishes.pipeline}, data {wishes.data}"
    return ArgumentError(
        f"{setting.subject.name} cannot be divided as {wanted} over {setting.devices} ({count} devices): tensor "
        f"parallel must divide {config.num_attention_heads} query heads and the feed-forward widths and fit "
        f"{config.num_key_value_heads} key and value heads, so it is one of {possible}; pipeline stages are at most "
        f"the {config.num_hidden_layers} layers; and their product is at most the number of devices"
    )
