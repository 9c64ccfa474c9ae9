"""Bytes of one device by what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ernie_accel.architecture.counts import Part, parameter_counts
from ernie_accel.backends.accelerator import weight_bits
from ernie_accel.backends.base import Footprint
from ernie_accel.planner.setting import Setting

__all__ = ["KV_SHARE", "DeviceMemory", "device_memory", "footprint_of"]

KV_SHARE = 0.8
"""Of what weights and working memory leave on a machine that others use too, how much the KV cache may take."""


@dataclass(frozen=True)
class DeviceMemory:
    """One device of a pipeline stage; all bytes.

    Attributes:
        devices: How many are like this one.
        weights: By class.
        kv: Of the KV cache, for the tokens that were asked for.
        kv_slack: More of it, since pages are taken whole.
        activations: Working memory of the largest step.
        communication: Buffers of exchanges with other devices.
        runtime: What code, context and libraries take.
        usable: What may be used.
        reserved: What the device has beyond that, for others and for what no plan foresees.
        kv_per_token: KV cache of one token.
        kv_budget: The most that the KV cache may take.
        page_tokens: Tokens of a page.
    """

    devices: int
    weights: Mapping[str, int]
    kv: int
    kv_slack: int
    activations: int
    communication: int
    runtime: int
    usable: int
    reserved: int
    kv_per_token: int
    kv_budget: int
    page_tokens: int

    @cached_property
    def weight_bytes(self) -> int:
        """All weights."""
        return sum(self.weights.values())

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weight_bytes + self.activations + self.communication + self.runtime

    @property
    def kv_bytes(self) -> int:
        """KV cache with what pages add."""
        return self.kv + self.kv_slack

    @property
    def required(self) -> int:
        """Everything."""
        return self.fixed + self.kv_bytes

    @property
    def headroom(self) -> int:
        """What is left of the usable memory; below 0 where it does not fit."""
        return self.usable - self.required

    @property
    def fits(self) -> bool:
        """Whether everything has room, the KV cache within its own bound."""
        return self.required <= self.usable and self.kv_bytes <= self.kv_budget

    def parts(self) -> dict[str, int]:
        """Bytes by what they are for, weights by class; nothing that is zero."""
        rest = {
            "kv cache": self.kv,
            "page slack": self.kv_slack,
            "activations": self.activations,
            "communication": self.communication,
            "runtime": self.runtime,
        }
        return {name: value for name, value in {**self.weights, **rest}.items() if value}


def footprint_of(setting: Setting) -> Footprint:
    """Ask the backend; with what one copy of the model is loaded with."""
    options = replace(
        setting.options,
        tensor_parallel=setting.degrees.tensor,
        max_batch=setting.sequences_of_copy,
    )
    return setting.estimate(setting.subject.config, options)


def device_memory(setting: Setting) -> tuple[DeviceMemory, ...]:
    """Return the memory of one device for each pipeline stage."""
    need = footprint_of(setting)
    layers = setting.subject.config.num_hidden_layers
    return tuple(_stage(setting, need, part, layers) for part in setting.degrees.parts(layers))


def _stage(setting: Setting, need: Footprint, part: Part, layers: int) -> DeviceMemory:
    held = range(layers) if part.layers is None else part.layers
    per_token = -(-need.kv_per_token * len(held) // layers)
    pages = -(-setting.context // need.page_tokens)
    tokens = setting.sequences_of_copy * setting.context
    taken = setting.sequences_of_copy * pages * need.page_tokens
    weights = _weights(setting, need, part)
    memory = setting.devices.device.memory
    usable = memory if setting.on_cpu else int(memory * setting.utilization)
    fixed = sum(weights.values()) + need.scratch + need.communication + need.runtime
    return DeviceMemory(
        devices=setting.degrees.tensor * setting.degrees.data,
        weights=weights,
        kv=tokens * per_token,
        kv_slack=(taken - tokens) * per_token,
        activations=need.scratch,
        communication=need.communication,
        runtime=need.runtime,
        usable=usable,
        reserved=memory - usable,
        kv_per_token=per_token,
        kv_budget=_kv_budget(setting, usable - fixed),
        page_tokens=need.page_tokens,
    )


def _kv_budget(setting: Setting, left: int) -> int:
    if setting.options.memory_limit is not None:
        return min(setting.options.memory_limit, max(0, left))
    return max(0, int(left * KV_SHARE) if setting.on_cpu else left)


def _weights(setting: Setting, need: Footprint, part: Part) -> dict[str, int]:
    """Bytes by class that a device of this part holds.

    The backend answers for one tensor-parallel rank with all layers; layers and experts of the part are its share.
    """
    subject, degrees = setting.subject, setting.degrees
    if subject.packed is not None and degrees.devices == 1:
        return {name: value for name, value in subject.packed.items() if value}
    held = parameter_counts(subject.config, part, mtp=setting.mtp)
    whole = parameter_counts(subject.config, Part(tensor=part.tensor), mtp=setting.mtp)
    given = need.weights
    weights = {}
    for name, count in held.items():
        if given is None:
            weights[name] = int(count * weight_bits(subject.config, setting.precision, name) / 8)
        elif whole[name] and given.get(name):
            weights[name] = given[name] * count // whole[name]
        elif count and given.get("embedding") and name == "head":  # a tied head, a second time
            weights[name] = given["embedding"] * count // max(1, whole["embedding"])
    if setting.mtp and not weights.get("mtp"):  # like the dense layers that it consists of
        weights["mtp"] = _alike(held["mtp"], weights, held, ("ffn", "attention"))
    for name, count in subject.extras.items():
        weights[name] = _extra(setting, name, count, part)
    return {name: value for name, value in weights.items() if value}


def _alike(
    count: int, weights: Mapping[str, int], counts: Mapping[str, int], classes: tuple[str, ...]
) -> int:
    """Bytes of so many parameters at the bits of other classes."""
    likes = [name for name in classes if weights.get(name) and counts[name]]
    return count * weights[likes[0]] // counts[likes[0]] if likes else 2 * count


def _extra(setting: Setting, name: str, count: int, part: Part) -> int:
    """Experts for images are divided as experts are; transformer and resampler lie in 16 bits on the first stage."""
    config = setting.subject.config
    layers = range(config.num_hidden_layers) if part.layers is None else part.layers
    if name == "vision":
        return 2 * count if layers.start == 0 else 0
    whole = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    held = sum(map(config.is_moe_layer, layers))
    bits = weight_bits(config, setting.precision, "experts")
    return int(count * held / max(1, whole) * bits / 8 / max(part.expert, part.tensor))
