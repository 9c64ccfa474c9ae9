"""The largest context and the largest number of sequences that fit, and what keeps them from being larger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ernie_accel.display import size
from ernie_accel.planner.memory import DeviceMemory, device_memory
from ernie_accel.planner.setting import Setting

__all__ = ["constraint", "largest_context", "largest_sequences", "with_load"]

_MOST_SEQUENCES = 1 << 16


def with_load(setting: Setting, *, context: int | None = None, sequences: int | None = None) -> Setting:
    """Return the setting with another context or number of sequences."""
    options = replace(
        setting.options,
        max_context=setting.context if context is None else context,
        max_batch=setting.sequences if sequences is None else sequences,
    )
    return replace(setting, options=options)


def largest_context(setting: Setting, *, sequences: int | None = None) -> int:
    """Return the most tokens that each of so many sequences can have; 0 where not even a page fits."""
    trained = setting.subject.config.max_position_embeddings
    now = with_load(setting, sequences=sequences)
    most = min(trained, *(_context(now, stage) for stage in device_memory(now)))
    return _largest(most, lambda context: with_load(now, context=context), _context)


def largest_sequences(setting: Setting) -> int:
    """Return how many sequences of the context fit on all devices together."""

    def fitting(there: Setting, stage: DeviceMemory) -> int:
        return _sequences(there, stage) * setting.degrees.data

    most = min(_MOST_SEQUENCES, *(fitting(setting, stage) for stage in device_memory(setting)))
    return _largest(most, lambda sequences: with_load(setting, sequences=sequences), fitting)


def _largest(
    most: int, load: Callable[[int], Setting], fitting: Callable[[Setting, DeviceMemory], int]
) -> int:
    """Return the largest count up to ``most`` that fits, 0 if none does.

    Working memory may grow with the count, and not evenly. What is left for the cache beside the working memory of a
    larger count surely fits; the rest is bisected.
    """
    fits, beyond = 0, most + 1
    count = most
    while fits < count < beyond:
        there = load(count)
        memory = device_memory(there)
        if all(stage.fits for stage in memory):
            fits, count = count, (count + beyond) // 2
        else:
            beyond = count
            left = min(fitting(there, stage) for stage in memory)
            count = left if fits < left < count else (fits + count) // 2
    return fits


def _pages(stage: DeviceMemory) -> int:
    return min(stage.kv_budget, stage.usable - stage.fixed) // max(1, stage.kv_per_token * stage.page_tokens)


def _context(setting: Setting, stage: DeviceMemory) -> int:
    return max(0, _pages(stage)) // setting.sequences_of_copy * stage.page_tokens


def _sequences(setting: Setting, stage: DeviceMemory) -> int:
    return max(0, _pages(stage)) // -(-setting.context // stage.page_tokens)


def constraint(setting: Setting, memory: tuple[DeviceMemory, ...]) -> str:
    """Say in one sentence what binds: what does not fit, or what would be the first not to."""
    tight = min(memory, key=lambda stage: stage.headroom)
    where = "this machine" if setting.on_cpu else "each device"
    has = f"{where} has {size(tight.usable)} for it"
    if tight.weight_bytes > tight.usable:
        return f"The weights alone are {size(tight.weight_bytes)} and {has}."
    if tight.fixed > tight.usable:
        return (
            f"Weights ({size(tight.weight_bytes)}), working memory ({size(tight.activations)}) and the backend's own "
            f"needs ({size(tight.runtime + tight.communication)}) are {size(tight.fixed)}, and {has}."
        )
    load = f"{setting.sequences} x {setting.context:,} tokens"
    cache = f"the KV cache of {load} takes {size(tight.kv_bytes)}"
    bound = (
        f"{size(tight.kv_budget)} may be used for it beside {size(tight.fixed)} of weights and working memory"
    )
    if not tight.fits:
        return f"{cache[0].upper()}{cache[1:]} on {where}, and {bound}."
    share = tight.kv_bytes / max(1, tight.kv_budget)
    return f"It fits: {cache} on {where}, {share:.0%} of the {bound}; more sequences or context end at that."
