"""What engines reach on processors, by precision, and what a step takes there.

A core waits for a part of the memory that it then multiplies, so neither hides the other whole: the time of a step's
matrices is the ``NORM``-norm of reading them and of multiplying by them, which lies between the larger of the two and
their sum. Taking a weight out of its format costs as much as multiplying some rows by it, whatever the number of rows.
Attention comes between the matrices, at a speed that depends on the width of keys and values, and on whether a block of
tokens or a single one looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ernie_accel.planner.work import Load, Work

__all__ = ["NORM", "Reach", "joined", "measured", "reach_of", "step_seconds"]

NORM = 2.0
"""Fitted, as all constants here, to what `scripts/bench plan speed` measures: see docs/guides/sizing.md."""

FEW = 4
"""Sequences whose draws look at the bounds of a nested head first (``kBoundRows`` in ``csrc/model``)."""


class Reach(NamedTuple):
    """What an engine reaches in one precision.

    Attributes:
        bandwidth: Share of the read bandwidth.
        arithmetic: Share of the arithmetic of its precision, where many rows are multiplied.
        rows: Rows that could be multiplied while a weight is taken out of its format.
        step: Seconds that are lost in every step.
        sequence: ... for each sequence whose next token it draws.
        one: Share of the int8 arithmetic that attention of single tokens reaches.
        many: ... that of prompts.
        head: Share of the head's bytes that is read to draw for at most ``FEW`` sequences.
    """

    bandwidth: float
    arithmetic: float
    rows: float
    step: float
    sequence: float
    one: float
    many: float
    head: float = 1.0


_REACHED: Mapping[tuple[str, str], Reach] = {
    ("native", "fp32"): Reach(0.97, 0.81, 1.0, 0.2e-3, 0.01e-3, 0.042, 0.21),
    ("native", "bf16"): Reach(0.88, 0.81, 1.9, 0.4e-3, 0.01e-3, 0.081, 0.33),
    ("native", "int8"): Reach(0.91, 0.62, 0.8, 0.5e-3, 0.01e-3, 0.069, 0.27, head=0.54),
    ("native", "int4"): Reach(0.93, 0.58, 4.0, 0.25e-3, 0.06e-3, 0.088, 0.34, head=0.67),
    ("paddle", "fp32"): Reach(1.0, 0.95, 8.8, 2.2e-3, 0.0, 0.0057, 0.03),
    ("onnxruntime", "fp32"): Reach(0.87, 0.78, 0.7, 0.2e-3, 1.8e-3, 0.017, 0.054),
    ("paddle", "bf16"): Reach(1.0, 0.375, 9.4, 0.7e-3, 1.2e-3, 0.0145, 0.6),
    ("onnxruntime", "int8"): Reach(0.81, 0.225, 1.2, 0.2e-3, 0.54e-3, 0.020, 0.12),
}

_UNKNOWN = Reach(0.6, 0.5, 8.0, 1e-3, 0.1e-3, 0.03, 0.1)


def reach_of(backend: str, precision: str) -> Reach:
    """Return what a backend reaches in a precision; of one that was never measured, a guess."""
    return _REACHED.get((backend, precision), _UNKNOWN)


def measured(backend: str, precision: str) -> bool:
    """Say whether what ``reach_of`` returns was measured."""
    return (backend, precision) in _REACHED


def step_seconds(
    work: Work, reached: Reach, *, bandwidth: float, tera: float, tera8: float, load: Load
) -> tuple[float, float, float]:
    """Return the seconds of reading weights, of multiplying by them, and of attention.

    Args:
        work: Of one step.
        reached: By the engine.
        bandwidth: Bytes a second.
        tera: Tera-operations a second in the precision of the weights.
        tera8: ... in int8.
        load: The tokens of the step.
    """
    head = work.head * (reached.head if load.prompts or load.tokens <= FEW else 1.0)
    reading = (work.weights + head) / (bandwidth * reached.bandwidth)
    operations = work.products + 2 * work.active * reached.rows
    share = reached.many if load.prompts else reached.one
    return reading, operations / (1e12 * tera * reached.arithmetic), work.attention / (1e12 * tera8 * share)


def joined(reading: float, multiplying: float, norm: float | None) -> float:
    """Return what both take together, by a norm of that degree; None: the larger of them."""
    if norm is None:
        return max(reading, multiplying)
    return math.pow(reading**norm + multiplying**norm, 1 / norm)
