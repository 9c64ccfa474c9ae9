"""The pictures of docs/guides/sizing.md."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

import ernie_accel as ea
from benchmarks.planning.memory import RESULT, saved
from benchmarks.planning.published import FITTED, PUBLISHED, predicted
from ernie_accel.planner.plan import plot_plans

RESULTS = Path("benchmarks/results")
_STYLE = {"svg.hashsalt": "plan", "svg.fonttype": "path"}


def bars() -> Figure:
    """300B on eight devices and fewer."""
    wanted = [("bf16", 8), ("int8", 8), ("int4", 4), ("int2", 2)]
    plans = [
        ea.plan(
            "300B-A47B",
            devices=f"{count}xA800",
            precision=precision,
            tensor_parallel=count,
            max_context=32768,
            max_batch=4,
        )
        for precision, count in wanted
    ]
    return plot_plans(plans)


def scaling() -> Figure:
    """Tokens per second of one sequence over devices: published, and as the model expects them."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = dict.fromkeys(f.model for f in (*FITTED, *PUBLISHED) if f.engine == "gpt-fast")
    for index, name in enumerate(names):
        figures = [f for f in (*FITTED, *PUBLISHED) if f.model == name and f.engine == "gpt-fast"]
        devices = [f.tensor for f in figures]
        left.plot(devices, [f.rate for f in figures], "o", color=f"C{index}", label=name)
        left.plot(devices, [predicted(f)[0] for f in figures], "--", color=f"C{index}")
    left.set_title("gpt-fast on A100 in bf16: published (dots), expected (lines)", fontsize="small")
    for precision in ("int8", "int4"):
        degrees = (1, 2, 4, 8, 16)
        plans = [
            ea.plan(
                "300B-A47B",
                devices=f"{n}xH800",
                precision=precision,
                tensor_parallel=n,
                max_context=2048,
            )
            for n in degrees
        ]
        right.plot(degrees, [p.speed.decode for p in plans], "-", label=f"{precision}, to expect")
        fitting = [(n, p.speed.decode) for n, p in zip(degrees, plans, strict=True) if p.fits]
        right.plot(*zip(*fitting, strict=True), "ko")
    right.set_title("300B-A47B on H800, one sequence; dots fit", fontsize="small")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("devices, tensor parallel")
        axes.set_ylabel("tokens/s")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    return figure


def memory() -> Figure:
    """Predicted over measured memory of the native backend."""
    rows = [row for row in saved()["rows"] if row["backend"] == "native"]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loading", "running"), strict=True):
        for precision in ("fp32", "bf16", "int8", "int4"):
            chosen = [row for row in rows if row["precision"] == precision and what in row["measured"]]
            real = [row["measured"][what] / 2**30 for row in chosen]
            said = [row["predicted"][what] / 2**30 for row in chosen]
            axes.loglog(real, said, "o", markersize=4, label=precision)
        low, high = 0.01, 20
        axes.loglog([low, high], [low, high], color="black", linewidth=0.8)
        axes.set_title(f"peak while {what}", fontsize="small")
        axes.set_xlabel("measured, GiB")
        axes.set_ylabel("predicted, GiB")
        axes.legend(fontsize="small")
    return figure


def main() -> None:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        for name, draw in (("bars", bars), ("scaling", scaling), ("memory", memory)):
            if name != "memory" or RESULT.exists():
                draw().savefig(RESULTS / f"plan-{name}.svg", metadata={"Date": None})
                print(RESULTS / f"plan-{name}.svg")


if __name__ == "__main__":
    main()
