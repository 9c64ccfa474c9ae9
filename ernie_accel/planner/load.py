"""What ``Model.load`` asks of the planner: refuse what cannot fit, and decide what the caller left open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from ernie_accel.backends import registry
from ernie_accel.backends.base import Backend, LoadOptions, PackingBackend
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.display import size
from ernie_accel.errors import CapacityError
from ernie_accel.planner.devices import machine, shared_out
from ernie_accel.planner.limits import largest_context, with_load
from ernie_accel.planner.loading import loading_bytes
from ernie_accel.planner.memory import DeviceMemory, device_memory, footprint_of
from ernie_accel.planner.precisions import UNSAID
from ernie_accel.planner.setting import Degrees, Setting
from ernie_accel.planner.subject import find_subject

__all__ = ["REQUEST_TOKENS", "RUNNING", "plan_load"]

RUNNING = 32
"""Requests that run together unless memory or the caller say otherwise."""

REQUEST_TOKENS = 512
"""Tokens of KV cache that there should be for each of them: more run one after the other than in pieces."""


def plan_load(checkpoint: Checkpoint, backend: Backend, options: LoadOptions) -> tuple[Setting, LoadOptions]:
    """Check that a model can be loaded as asked; return what was planned, and the options with nothing left open.

    Weights, working memory and a page of KV cache must fit; with ``max_context`` one sequence of it. The KV cache gets
    ``memory_limit``, or 80 % of what is left; ``max_batch`` is 32, or fewer where the cache is small. A model that is
    divided among processes of this machine is planned for what one of them holds and its share of the memory.

    Raises:
        CapacityError: It cannot fit; says what is required, what is available and the largest context that would fit.
        UnsupportedError, ArgumentError: What the backend says to the options.
    """
    setting = _setting(checkpoint, backend, options)
    # A context that nobody asked for need not fit whole: pages are taken as texts grow.
    least = setting if options.max_context else with_load(setting, context=1)
    (memory,) = device_memory(least)
    if not memory.fits:
        raise CapacityError(_refusal(least, memory, options))
    _check_loading(least, memory)
    tokens = memory.kv_budget // max(1, memory.kv_per_token)
    running = options.max_batch or min(RUNNING, max(1, tokens // min(REQUEST_TOKENS, setting.context)))
    settled = replace(options, max_batch=running, memory_limit=memory.kv_budget * setting.degrees.tensor)
    return with_load(setting, sequences=running), settled


def _setting(checkpoint: Checkpoint, backend: Backend, options: LoadOptions) -> Setting:
    subject = find_subject(checkpoint)
    offered = registry.precisions(backend) or (UNSAID,)
    precision = offered[0] if options.precision == "auto" else options.precision
    ranks = 1 if options.tensor_parallel == "auto" else options.tensor_parallel
    limit = options.memory_limit
    asked = replace(
        options,
        max_context=options.max_context or subject.config.max_position_embeddings,
        max_batch=1,
        precision=cast("Any", precision),
        memory_limit=None if limit is None else limit // ranks,
        progress=None,
    )
    return Setting(
        subject=subject,
        devices=shared_out(machine(options.threads), ranks),
        backend=backend.name,
        estimate=backend.estimate,
        precision=precision,
        options=asked,
        degrees=Degrees(tensor=ranks),
        offered=offered,
        packs=isinstance(backend, PackingBackend),
    )


def _check_loading(setting: Setting, memory: DeviceMemory) -> None:
    """Refuse what fits once it is loaded, but would not get there."""
    peak = loading_bytes(setting, (memory,)) or 0
    if footprint_of(setting).loading and peak > memory.usable:
        raise CapacityError(
            f"{setting.subject.name} in {setting.precision} needs {peak:,} bytes while backend {setting.backend!r} "
            f"loads it, and {memory.required:,} afterwards; {memory.usable:,} bytes are available; choose another "
            "backend or a smaller precision, or free memory"
        )


def _refusal(setting: Setting, memory: DeviceMemory, options: LoadOptions) -> str:
    longest, ranks = largest_context(setting), setting.degrees.tensor
    if longest:
        most = f"the largest context that fits is {longest:,} tokens"
    elif memory.fixed + memory.kv_bytes <= memory.usable:
        most = f"no context fits: raise memory_limit to {memory.kv_bytes * ranks:,} at least"
    else:
        most = "no context fits: choose a smaller precision, or free memory"
    limit = "" if options.memory_limit is None else f" (memory_limit={options.memory_limit:,})"
    load = f"one sequence of {setting.context:,} tokens" if options.max_context else "one page of KV cache"
    each = "" if ranks == 1 else f" in each of {ranks} processes"
    return (
        f"{setting.subject.name} in {setting.precision} needs {memory.required:,} bytes{each}: weights "
        f"{size(memory.weight_bytes)}, working memory {size(memory.activations + memory.runtime)}, {load} "
        f"{size(memory.kv_bytes)}; {memory.usable:,} bytes are available, of which the KV cache may take "
        f"{memory.kv_budget:,}{limit}; {most}"
    )
