"""What would make a plan fit, the least costly first; each is tried before it is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from ernie_accel.display import size
from ernie_accel.errors import ArgumentError, ErnieAccelError
from ernie_accel.planner.degrees import Wishes, choose_degrees
from ernie_accel.planner.devices import CATALOGUE, Devices
from ernie_accel.planner.limits import largest_context, largest_sequences, with_load
from ernie_accel.planner.memory import device_memory
from ernie_accel.planner.plan import Change
from ernie_accel.planner.precisions import PRECISIONS
from ernie_accel.planner.setting import Setting

__all__ = ["changes_of"]

_MOST_DEVICES = 64

_COSTS = {
    "fp8": "8 bits with scales for blocks: hardly any loss",
    "int8": "8 bits a weight: hardly any loss",
    "int4": "4 bits a weight: a small loss, see docs/accuracy.md",
    "w4a8": "experts in 4 bits, activations in 8; needs a checkpoint that lies so",
    "int2": "experts in about 2 bits: on 300B 2 to 4 points of IFEval, BBH and CMMLU; needs a checkpoint that lies so",
}

Tried = tuple[str, str, Setting]


def changes_of(setting: Setting, wishes: Wishes) -> tuple[Change, ...]:
    """Return the changes that suffice alone."""
    found = []
    for label, cost, tried in _ideas(setting):
        try:
            other = choose_degrees(tried, wishes)
            memory = device_memory(other)
        except ErnieAccelError:  # the backend or the device lacks it
            continue
        if all(stage.fits for stage in memory):
            found.append(Change(label, cost, max(stage.required for stage in memory)))
    return tuple(found)


def _ideas(setting: Setting) -> Iterator[Tried]:
    """Changes in the order of what they cost: memory only, speed of prompts, requests, length, accuracy, money."""
    options = setting.options
    if options.kv_precision not in ("int8", "fp8") and setting.precision != "w4a8":
        smaller = replace(setting, options=replace(options, kv_precision="int8"))
        yield "kv_precision='int8'", "a small loss at long contexts", smaller
    tokens = options.step_tokens or 0
    for fewer in (tokens // 4, tokens // 16):
        if fewer >= max(64, setting.sequences_of_copy):
            chunk = replace(setting, options=replace(options, step_tokens=fewer))
            yield f"step_tokens={fewer}", "prompts are read in smaller chunks, so more slowly", chunk
            break
    yield from _less_load(setting)
    yield from _narrower(setting)
    yield from _hardware(setting)


def _less_load(setting: Setting) -> Iterator[Tried]:
    most = largest_sequences(setting)
    if 0 < most < setting.sequences:
        yield f"max_batch={most}", "further requests wait", with_load(setting, sequences=most)
    longest = largest_context(setting)
    if 0 < longest < setting.context:
        cost = "longer prompts and outputs are refused"
        yield f"max_context={longest}", cost, with_load(setting, context=longest)


def _narrower(setting: Setting) -> Iterator[Tried]:
    narrower = PRECISIONS[PRECISIONS.index(setting.precision) + 1 :]
    if setting.subject.stored is not None:
        return
    for precision in narrower:
        fp8 = precision == "fp8" and not setting.devices.device.fp8
        if precision in setting.offered and precision in _COSTS and not fp8:
            options = replace(setting.options, precision=cast("Any", precision))
            yield (
                f"precision={precision!r}",
                _COSTS[precision],
                replace(setting, precision=precision, options=options),
            )


def _hardware(setting: Setting) -> Iterator[Tried]:
    if setting.on_cpu:
        tight = min(device_memory(setting), key=lambda stage: stage.headroom)
        more = -tight.headroom if tight.headroom < 0 else 0
        if more:
            device = replace(setting.devices.device, memory=setting.devices.device.memory + 2 * more)
            yield (
                f"a machine with {size(more)} more free memory",
                "none",
                replace(setting, devices=Devices(device)),
            )
        return
    device, count = setting.devices.device, setting.devices.count
    for more in (count * 2**n for n in range(1, 7)):
        if more <= _MOST_DEVICES and _enough(replace(setting, devices=Devices(device, more))):
            yield (
                f"devices='{more}x{device.name}'",
                f"{more - count} devices more",
                replace(setting, devices=Devices(device, more)),
            )
            break
    larger = sorted(CATALOGUE.values(), key=lambda each: each.memory)
    for other in (each for each in larger if each.memory > device.memory):
        if _enough(replace(setting, devices=Devices(other, count))):
            yield (
                f"devices='{Devices(other, count)}'",
                "other devices",
                replace(setting, devices=Devices(other, count)),
            )
            break


def _enough(setting: Setting) -> bool:
    try:
        return all(stage.fits for stage in device_memory(choose_degrees(setting, Wishes())))
    except ArgumentError:
        return False
