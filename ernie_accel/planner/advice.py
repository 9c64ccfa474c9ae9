"""Advice for three aims, each with its reason and numbers: accuracy, latency, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from ernie_accel.display import html_table, size, text_table
from ernie_accel.errors import ArgumentError, UnsupportedError
from ernie_accel.planner.plan import MemoryPlan
from ernie_accel.planner.planning import plan
from ernie_accel.planner.subject import ModelSource

__all__ = ["Advice", "Scenario", "advise"]

Scenario = Literal["accuracy", "latency", "memory"]

START_SHARE = 0.7
"""Share of a device's memory that weights and cache fill at the batch to start with; the rest is for what was not
foreseen."""

_WIDEST = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")


@dataclass(frozen=True, kw_only=True, repr=False)
class Advice:
    """What ``ernie_accel.advise`` returns; prints as a table.

    Attributes:
        scenario: ``"accuracy"``, ``"latency"`` or ``"memory"``.
        plan: With the precision, degrees and batch that are advised.
        start_batch: Sequences to start with; ``plan.max_sequences`` is the most.
        reasons: Of precision, degrees and batch, one sentence each, with their numbers.
        tried: Precisions that were compared, and what was said of each.
    """

    scenario: Scenario
    plan: MemoryPlan
    start_batch: int
    reasons: tuple[str, ...]
    tried: tuple[tuple[str, str], ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of everything that is shown."""
        settled = self.plan
        return [
            ("scenario", f"{self.scenario} first"),
            (
                "advice",
                f"precision={settled.precision!r}, KV cache {settled.kv_precision}, {settled.degrees}, "
                f"max_batch={self.start_batch}, max_context={settled.context}",
            ),
            ("reasons", "\n".join(self.reasons)),
            *self.tried,
        ]

    def __repr__(self) -> str:
        return f"Advice\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return html_table("Advice", self.rows())


def advise(model: ModelSource, scenario: Scenario = "accuracy", **settings: Any) -> Advice:
    """Choose precision, degrees and batch for an aim.

    ``"accuracy"`` takes the widest precision that fits, ``"latency"`` the one with most tokens per second for each
    sequence, ``"memory"`` the one that leaves most of the devices free.

    Args:
        model: As for ``ernie_accel.plan``.
        scenario: The aim; ``"latency-first"`` is another name of ``"latency"``, and so with the others.
        **settings: As for ``ernie_accel.plan``, but for ``precision``.

    Raises:
        ArgumentError: The scenario is none of the three, or a setting can never work.
        UnsupportedError: No precision of the backend is possible on the devices.
    """
    if isinstance(scenario, str):
        scenario = cast("Scenario", scenario.removesuffix("-first"))
    if scenario not in get_args(Scenario):
        raise ArgumentError(f"scenario={scenario!r}: must be one of {', '.join(get_args(Scenario))}")
    if "precision" in settings:
        raise ArgumentError("precision: advise chooses it; plan takes one")
    plans = _possible(model, settings)
    chosen = _choose(scenario, plans)
    most = chosen.max_sequences
    start = max(1, min(most, _start_batch(chosen))) if chosen.fits else 1
    return Advice(
        scenario=scenario,
        plan=chosen,
        start_batch=start,
        reasons=(_precision(scenario, chosen, plans), _degrees(chosen), _batch(chosen, start)),
        tried=tuple((plan.precision, _summary(plan)) for plan in plans),
    )


def _possible(model: ModelSource, settings: dict[str, Any]) -> list[MemoryPlan]:
    plans, refusals = [], []
    for precision in _WIDEST:
        try:
            plans.append(plan(model, precision=precision, **settings))
        except UnsupportedError as error:
            refusals.append(str(error))
    if not plans:
        raise UnsupportedError(refusals[-1])
    # What the published checkpoints hold is bfloat16: float32 keeps no more of it, float16 no less memory.
    names = {each.precision for each in plans}
    spare = {"fp32", "fp16"} if "bf16" in names else {"fp32"} if "fp16" in names else set()
    return [each for each in plans if each.precision not in spare]


def _choose(scenario: Scenario, plans: list[MemoryPlan]) -> MemoryPlan:
    fitting = [each for each in plans if each.fits]
    if not fitting:
        return min(plans, key=lambda each: each.required)
    if scenario == "accuracy":
        return fitting[0]
    if scenario == "latency":
        return max(fitting, key=lambda each: each.speed.per_sequence)
    return min(fitting, key=lambda each: sum(each.total().values()))


def _start_batch(settled: MemoryPlan) -> int:
    """Sequences of the plan's context that fill the usable memory up to a share."""
    device = settled.device
    room = START_SHARE * device.usable - device.fixed
    each = settled.context * device.kv_per_token
    copies = settled.degrees.data
    return int(max(0.0, min(room, device.kv_budget)) // max(1, each)) * copies


def _precision(scenario: Scenario, chosen: MemoryPlan, plans: list[MemoryPlan]) -> str:
    if not chosen.fits:
        return f"No precision fits; {chosen.precision} is nearest to it. {chosen.constraint}"
    weights = size(sum(chosen.total().get(name, 0) for name in chosen.parameters))
    rate = f"{chosen.speed.per_sequence:.0f} tokens/s for each sequence"
    if scenario == "accuracy":
        wider = [each.precision for each in plans[: plans.index(chosen)]]
        instead = f"; {', '.join(wider)} would not fit" if wider else "; nothing is lost to rounding"
        return f"Precision {chosen.precision}: the widest that fits, {weights} of weights{instead}."
    if scenario == "latency":
        return (
            f"Precision {chosen.precision}: the fastest that fits, {rate}, as a step reads {weights} at most."
        )
    return f"Precision {chosen.precision}: the smallest, {weights} of weights; {rate}."


def _degrees(chosen: MemoryPlan) -> str:
    step, degrees = chosen.speed.step, chosen.degrees
    if degrees.devices == 1:
        return "Not divided: on one device nothing is exchanged."
    share = step.communication / step.seconds
    return (
        f"Divided as {degrees}: {size(chosen.required)} of {size(chosen.available)} on each device, and exchanges take "
        f"{share:.0%} of a step."
    )


def _batch(chosen: MemoryPlan, start: int) -> str:
    if not chosen.fits:
        return "Batch 1 until it fits."
    return (
        f"Batch {start} to start with: {START_SHARE:.0%} of the memory at {chosen.context:,} tokens each; the plan "
        f"allows {chosen.max_sequences:,}, and fewer tokens leave room for more."
    )


def _summary(each: MemoryPlan) -> str:
    verdict = "fits" if each.fits else "does not fit"
    return (
        f"{verdict}: {size(each.required)} of {size(each.available)} on {each.degrees.devices} of {each.devices}, "
        f"{each.speed.per_sequence:.0f} tokens/s a sequence"
    )
