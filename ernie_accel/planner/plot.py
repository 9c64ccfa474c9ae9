"""The picture of plans. Only here does the planner know matplotlib (extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ernie_accel.planner.memory import DeviceMemory
    from ernie_accel.planner.plan import MemoryPlan

__all__ = ["draw"]

_GIB = 2**30
_COLOURS = (*(f"C{index}" for index in range(10)), "tan", "gold", "navy", "plum", "black")


def draw(plans: list[MemoryPlan]) -> Figure:
    """Draw a stacked bar for one device of each plan and stage, and a line at what may be used of it."""
    bars = [(_label(plan, index), stage) for plan in plans for index, stage in enumerate(plan.stages)]
    figure = Figure(figsize=(9, 2 + 0.7 * len(bars)), layout="constrained")
    axes = figure.subplots()
    _stack(axes, bars)
    for row, (_, stage) in enumerate(bars):
        axes.plot([stage.usable / _GIB] * 2, [row - 0.4, row + 0.4], color="black", linewidth=2)
        axes.text(stage.usable / _GIB, row + 0.42, "usable", ha="center", va="top", fontsize="x-small")
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("GiB of one device")
    figure.legend(ncols=5, fontsize="small", loc="outside lower center")
    return figure


def _stack(axes: Axes, bars: list[tuple[str, DeviceMemory]]) -> None:
    names = list(dict.fromkeys(name for _, stage in bars for name in stage.parts()))
    starts = [0.0] * len(bars)
    for index, name in enumerate(names):
        values = [stage.parts().get(name, 0) / _GIB for _, stage in bars]
        axes.barh(
            range(len(bars)),
            values,
            left=starts,
            height=0.6,
            label=name,
            color=_COLOURS[index % len(_COLOURS)],
        )
        starts = [start + value for start, value in zip(starts, values, strict=True)]


def _label(plan: MemoryPlan, stage: int) -> str:
    verdict = "fits" if plan.fits else "does not fit"
    part = f", stage {stage + 1}" if len(plan.stages) > 1 else ""
    return f"{plan.model} {plan.precision}\n{plan.devices}, {plan.degrees}{part}\n{verdict}"
