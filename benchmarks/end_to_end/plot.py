"""A bar for each engine, with the range of its rounds, as SVG."""

from __future__ import annotations

import io
from typing import Any

from .engines import ENGINES

OURS, THEIRS, INK = "#1f6fb2", "#b8bec6", "#30363d"


def plot(result: dict[str, Any], title: str) -> str:
    """Return the text of an SVG: fastest on top, ours in colour, a whisker from lowest to highest round."""
    import matplotlib
    from matplotlib.figure import Figure

    names = sorted(result["engines"], key=lambda name: result["engines"][name]["tokens_per_second"]["median"])
    rates = [result["engines"][name]["tokens_per_second"] for name in names]
    medians = [rate["median"] for rate in rates]
    spread = [
        [rate["median"] - rate["low"] for rate in rates],
        [rate["high"] - rate["median"] for rate in rates],
    ]
    # The same figures give the same file: fixed identifiers, no date, letters as text.
    with matplotlib.rc_context({"svg.hashsalt": "ernie_accel", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(
            [result["engines"][name]["title"] for name in names],
            medians,
            xerr=spread,
            color=[OURS if ENGINES[name].ours else THEIRS for name in names],
            ecolor=INK,
            error_kw={"linewidth": 1, "capsize": 2},
        )
        for row, (rate, value) in enumerate(zip(rates, medians, strict=True)):
            axes.annotate(
                f"{value:.0f}",
                (rate["high"], row),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_xlim(0, max(rate["high"] for rate in rates) * 1.1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("tokens per second, median and range of rounds")
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
