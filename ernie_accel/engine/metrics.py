"""What our engine counts: tokens, requests, and how long they waited for what."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ernie_accel.engine.job import Job
from ernie_accel.metrics import SECONDS, SIZES, Histogram, Metrics, Series

__all__ = ["Histogram", "Metrics", "Recorder"]


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
            "alternatives",
            "texts",
        )
        self._counters |= dict.fromkeys([*more, "drafted_tokens", "accepted_tokens"], 0)
        seconds = ("queue", "time_to_first_token", "inter_token", "request", "step")
        self._series = {f"{name}_seconds": Series(SECONDS) for name in seconds}
        self._series |= {"batch_size": Series(SIZES), "step_tokens": Series(SIZES)}
        self._between = self._series["inter_token_seconds"]

    def started(self, job: Job) -> None:
        """A job was given its sequence, for the first time or again."""
        if not job.started:
            job.started = time.perf_counter()
            if job.kind == "request":
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
        if job.kind == "request":
            self._counters[f"requests_{job.outcome}"] += 1
            self._series["request_seconds"].note(time.perf_counter() - job.arrived)
        else:
            self._counters["alternatives" if job.kind == "alternative" else "texts"] += 1

    def snapshot(self, gauges: Mapping[str, int]) -> Metrics:
        """Return everything counted so far."""
        histograms = {name: series.histogram() for name, series in self._series.items()}
        return Metrics(counters=dict(self._counters), gauges=dict(gauges), histograms=histograms)
