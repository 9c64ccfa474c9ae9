"""What each fusion of the static graph gains: a decoding step with all of them, and without each in turn."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import BackendUnavailableError
from ernie_accel.export.step import Fusions
from ernie_accel.types import Progress

__all__ = ["time_fusions"]

CONTEXT, STEPS, ROUNDS = 64, 20, 2


def time_fusions(checkpoint: Checkpoint, progress: Progress | None = None) -> dict[str, Any]:
    """Return ``step_milliseconds`` and ``gains`` of ``ExportReport``, on the backend ``onnxruntime`` in fp32.

    The models do not fit beside each other, so they are measured one after another, twice: the faster median counts.
    """
    registry.choose("onnxruntime")
    variants = {"": Fusions(), **{name: Fusions().without(name) for name in Fusions.names()}}
    found: dict[str, float] = {}
    total = ROUNDS * len(variants)
    for round_ in range(ROUNDS):
        for number, (name, fusions) in enumerate(variants.items()):
            seconds = _decode_seconds(checkpoint, fusions)
            found[name] = min(seconds, found.get(name, seconds))
            if progress is not None:
                progress("time", round_ * len(variants) + number + 1, total)
    base = found.pop("")
    return {
        "step_milliseconds": 1e3 * base,
        "gains": {name: 1e3 * (seconds - base) for name, seconds in found.items()},
    }


def _decode_seconds(checkpoint: Checkpoint, fusions: Fusions) -> float:
    backend: Any = registry.get("onnxruntime")
    if not hasattr(backend, "options_type"):
        raise BackendUnavailableError(
            "backend 'onnxruntime' was replaced by one that cannot leave out fusions"
        )
    options = LoadOptions(
        precision="fp32", max_batch=1, backend_options=backend.options_type(fusions=fusions)
    )
    runner = backend.open(checkpoint, options)
    try:
        seq = runner.open()
        runner.forward([Step(seq, [0] * min(CONTEXT, runner.info.max_context // 2))])
        times = []
        for _ in range(min(STEPS, runner.info.max_context // 2)):
            began = time.perf_counter()
            runner.forward([Step(seq, [0])])
            times.append(time.perf_counter() - began)
        return median(times)
    finally:
        runner.close()
