"""The picture of a QuantizationReport. The one file that knows matplotlib (extra ``plot``)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ernie_accel.quant.report import QuantizationReport

__all__ = ["draw"]

_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:.*\.)?(\w+)\.weight")


def draw(report: QuantizationReport) -> Figure:
    """Draw bits by class beside errors by layer. No window is opened and no state of matplotlib is touched."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    _bits(left, report)
    _errors(right, report)
    title = f"{report.source} in {report.precision}, {report.total_bits_per_weight:.2f} bits a weight"
    if report.accuracy is not None:
        found = report.accuracy
        title += f"; KL {found.kl:.4f}, top-1 {found.top1:.1%}, perplexity {found.perplexity_change:+.2%}"
    figure.suptitle(title)
    return figure


def _bits(axes: Axes, report: QuantizationReport) -> None:
    bits = report.bits_per_weight
    bars = axes.barh(list(bits), list(bits.values()))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("bits a weight")
    axes.margins(x=0.15)


def _errors(axes: Axes, report: QuantizationReport) -> None:
    points: dict[str, tuple[list[int], list[float]]] = {}
    for name, error in report.errors.items():
        found = _LAYER.fullmatch(name)
        if found:
            layers, errors = points.setdefault(found[2], ([], []))
            layers.append(int(found[1]))
            errors.append(error)
    for kind, (layers, errors) in points.items():
        axes.plot(layers, errors, "o", label=kind, markersize=4)
    axes.set_xlabel("layer")
    axes.set_ylabel("relative error of results")
    axes.set_ylim(bottom=0)
    if points:
        axes.legend(ncols=4, fontsize="small")
