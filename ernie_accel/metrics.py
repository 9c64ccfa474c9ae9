"""Counters and histograms of what a model has done: ``Model.metrics``."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ernie_accel.display import html_table, text_table
from ernie_accel.errors import ArgumentError

__all__ = ["SECONDS", "SIZES", "Histogram", "Metrics", "Series"]

SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0),
)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Histogram:
    """How often values fell between bounds.

    Attributes:
        bounds: Upper bounds, ascending, each included in its bucket.
        counts: Values in each bucket, and in one more for those above all bounds.
        total: Sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Mean of all values; nan if there are none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Return the value below which ``share`` of them lie, interpolated within its bucket; nan if there are none.

        Of numbers of things, whose bounds are whole, a whole number.

        Raises:
            ArgumentError: ``share`` is not from 0 to 1; 0.95 is the 95th percentile.
        """
        if not 0.0 <= share <= 1.0:
            raise ArgumentError(f"share={share!r}: must be from 0 to 1; 0.95 is the 95th percentile")
        if not self.count:
            return math.nan
        wanted, below = share * self.count, 0
        for index, here in enumerate(self.counts):
            if here and below + here >= wanted:
                low = self.bounds[index - 1] if index else 0.0
                high = self.bounds[min(index, len(self.bounds) - 1)]
                value = low + (high - low) * max(0.0, wanted - below) / here
                return value if any(isinstance(bound, float) for bound in self.bounds) else math.ceil(value)
            below += here
        return self.bounds[-1]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A model's counters since it was loaded, and its state now.

    Attributes:
        counters: Only ever grow. One for each request that has ended, by how its first completion ended:
            ``requests_stop``, ``requests_length``, ``requests_cancelled``, ``requests_failed``; for further
            completions of ``n`` above 1: ``alternatives``; for texts of score, embed and logits: ``texts``. Tokens of
            all three kinds: ``prompt_tokens`` (of those that were started), ``cached_tokens`` (of them not computed
            again), ``computed_tokens``; ``generated_tokens`` of all completions. Of the engine: ``steps``,
            ``preemptions``, ``drafted_tokens`` and ``accepted_tokens`` (of speculation).
        gauges: Of all three kinds: ``waiting``, ``running``; ``kv_free_tokens``, ``kv_used_tokens``,
            ``kv_kept_tokens`` and ``kept_sequences`` (of what has ended, for later requests).
        histograms: A value for each request: ``queue_seconds``, ``request_seconds``; for each completion:
            ``time_to_first_token_seconds``, and for each of its other tokens ``inter_token_seconds``; for each step:
            ``step_seconds``, ``batch_size`` (sequences in it), ``step_tokens``.
    """

    counters: Mapping[str, int]
    gauges: Mapping[str, int]
    histograms: Mapping[str, Histogram]

    def to_prometheus(self, prefix: str = "ernie_accel", labels: Mapping[str, str] | None = None) -> str:
        """Return everything in Prometheus' text format 0.0.4, for a service's ``/metrics``.

        Args:
            prefix: Begins every name: ``ernie_accel_steps_total``. Counters end in ``_total``, times are in seconds.
            labels: Stand at every value, the model's name for instance.

        Raises:
            ArgumentError: A name that Prometheus does not take or uses itself (``le``, ``__...``), or a label's value
                that is no string.
        """
        _check_names(prefix, labels or {})
        own = ",".join(f'{name}="{_escaped(value)}"' for name, value in (labels or {}).items())
        braced = f"{{{own}}}" if own else ""
        lines = []
        for name, value in self.counters.items():
            full = f"{prefix}_{name}_total"
            lines += [f"# TYPE {full} counter", f"{full}{braced} {value}"]
        for name, value in self.gauges.items():
            full = f"{prefix}_{name}"
            lines += [f"# TYPE {full} gauge", f"{full}{braced} {value}"]
        for name, histogram in self.histograms.items():
            lines += _exposed(f"{prefix}_{name}", histogram, own)
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        return f"Metrics\n{text_table(self._rows())}"

    def _repr_html_(self) -> str:
        return html_table("Metrics", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(name, str(value)) for name, value in {**self.counters, **self.gauges}.items()]
        for name, h in self.histograms.items():
            if h.count:
                middle, late = h.quantile(0.5), h.quantile(0.95)
                rows.append((name, f"median {middle:.4g}, 95 % {late:.4g}, mean {h.mean:.4g} of {h.count}"))
        return rows


def _exposed(name: str, histogram: Histogram, labels: str) -> list[str]:
    """Return the lines of a histogram: buckets count everything up to their bound."""
    comma, braced = ("," if labels else ""), (f"{{{labels}}}" if labels else "")
    up_to = list(accumulate(histogram.counts))
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    buckets = [
        f'{name}_bucket{{{labels}{comma}le="{bound}"}} {n}' for bound, n in zip(bounds, up_to, strict=True)
    ]
    ends = [f"{name}_sum{braced} {float(histogram.total)}", f"{name}_count{braced} {up_to[-1]}"]
    return [f"# TYPE {name} histogram", *buckets, *ends]


def _check_names(prefix: str, labels: Mapping[str, str]) -> None:
    for name in (prefix, *labels):
        if not _NAME.fullmatch(name):
            raise ArgumentError(f"{name!r}: letters, digits and _ are allowed, and no digit in front")
    for name, value in labels.items():
        if name == "le" or name.startswith("__"):
            raise ArgumentError(f"label {name!r}: Prometheus uses this name itself; choose another")
        if not isinstance(value, str):
            raise ArgumentError(f"label {name}={value!r}: must be a string")


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@dataclass
class Series:
    """A histogram that still grows; one thread notes."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def note(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def histogram(self) -> Histogram:
        """Return what was counted so far."""
        return Histogram(tuple(self.bounds), tuple(self.counts), self.total)
