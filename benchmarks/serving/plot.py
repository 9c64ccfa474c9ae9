"""Waiting times as curves, as SVG: for each way the share of requests, or of tokens, that waited no longer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

COLOURS = {"batches": "#b8bec6", "continuous": "#1f6fb2", "latency-target": "#d9822b"}
PANELS = {"first_token": "time to the first token, s", "between_tokens": "time between two tokens, s"}


def plot(result: dict[str, Any], titles: Mapping[str, str]) -> str:
    """Return the text of an SVG: a panel for the first token, one for the time between tokens, both logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same figures give the same file: fixed identifiers, no date, letters as text.
    with matplotlib.rc_context({"svg.hashsalt": "ernie_accel", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        for axes, (what, label) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
            for name, row in result["ways"].items():
                curve = row[f"{what}_curve"]
                axes.plot(curve, range(1, 101), color=COLOURS[name], label=titles[name].replace("`", ""))
            axes.axhline(95, color="#30363d", linewidth=0.6, linestyle=":")
            axes.set_xscale("log")
            axes.set_ylim(0, 101)
            axes.set_xlabel(label)
            axes.set_ylabel("per cent that waited no longer")
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False, fontsize=9)
        figure.suptitle(
            f"{result['shape']} {result['precision']}, Poisson arrivals at {result['load']:.0%} of the capacity",
            fontsize=10,
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
