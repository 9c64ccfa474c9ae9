"""What an engine counts: tokens, requests, and how long they waited for what."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ernie_accel.display import html_table, text_table
from ernie_accel.engine.job import Job
from ernie_accel.errors import ArgumentError

__all__ = ["Histogram", "Metrics", "Recorder"]

SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0),
)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


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
                return low + (high - low) * max(0.0, wanted - below) / here
            below += here
        return self.bounds[-1]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A model's counters since it was loaded, and its state now.

    Attributes:
        counters: Only ever grow: ``requests_stop``, ``requests_length``, ``requests_cancelled``, ``requests_failed``,
            ``prompt_tokens`` (of started requests), ``cached_tokens`` (of them not computed again),
            ``generated_tokens``, ``steps``, ``computed_tokens``, ``preemptions``, ``drafted_tokens`` and
            ``accepted_tokens`` (of speculation).
        gauges: ``waiting``, ``running`` (requests), ``kv_free_tokens``, ``kv_used_tokens``, ``kv_kept_tokens`` and
            ``kept_sequences`` (of ended requests, for later ones).
        histograms: ``queue_seconds``, ``time_to_first_token_seconds``, ``inter_token_seconds``, ``request_seconds``,
            ``step_seconds``, ``batch_size`` (requests in a step), ``step_tokens``.
    """

    counters: Mapping[str, int]
    gauges: Mapping[str, int]
    histograms: Mapping[str, Histogram]

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


@dataclass
class _Series:
    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Recorder:
    """Counts; only the thread that computes calls these methods, any may take a ``snapshot``."""

    def __init__(self) -> None:
        names = ("stop", "length", "cancelled", "failed")
        self._counters = dict.fromkeys([f"requests_{name}" for name in names], 0)
        more = (
            "prompt_tokens",
            "cached_tokens",
            "generated_tokens",
            "steps",
            "computed_tokens",
            "preemptions",
        )
        self._counters |= dict.fromkeys([*more, "drafted_tokens", "accepted_tokens"], 0)
        seconds = ("queue", "time_to_first_token", "inter_token", "request", "step")
        self._series = {f"{name}_seconds": _Series(SECONDS) for name in seconds}
        self._series |= {"batch_size": _Series(SIZES), "step_tokens": _Series(SIZES)}
        self._between = self._series["inter_token_seconds"]

    def started(self, job: Job) -> None:
        """A job was given its sequence, for the first time or again."""
        if not job.started:
            job.started = time.perf_counter()
            self._series["queue_seconds"].note(job.started - job.arrived)
            self._counters["prompt_tokens"] += len(job.tokens)
            self._counters["cached_tokens"] += job.cached

    def stepped(self, jobs: int, tokens: int, seconds: float) -> None:
        """A step was computed."""
        self._counters["steps"] += 1
        self._counters["computed_tokens"] += tokens
        self._series["step_seconds"].note(seconds)
        self._series["batch_size"].note(jobs)
        self._series["step_tokens"].note(tokens)

    def first_token(self, seconds: float) -> None:
        """A request has its first token, so long after it was made."""
        self._counters["generated_tokens"] += 1
        self._series["time_to_first_token_seconds"].note(seconds)

    def next_tokens(self, count: int, seconds: float) -> None:
        """A request has more tokens, so long after those before."""
        self._counters["generated_tokens"] += count
        for _ in range(count):
            self._between.note(seconds / count)

    def checked(self, drafted: int, accepted: int) -> None:
        """Drafts were checked."""
        self._counters["drafted_tokens"] += drafted
        self._counters["accepted_tokens"] += accepted

    def preempted(self) -> None:
        """A job made room for others."""
        self._counters["preemptions"] += 1

    def ended(self, job: Job) -> None:
        """A job ended."""
        self._counters[f"requests_{job.outcome}"] += 1
        self._series["request_seconds"].note(time.perf_counter() - job.arrived)

    def snapshot(self, gauges: Mapping[str, int]) -> Metrics:
        """Return everything counted so far."""
        histograms = {
            name: Histogram(tuple(series.bounds), tuple(series.counts), series.total)
            for name, series in self._series.items()
        }
        return Metrics(counters=dict(self._counters), gauges=dict(gauges), histograms=histograms)
