"""Two moments: a cancel in the middle of a long prompt, and a prompt whose beginning was seen before."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

import numpy as np

import ernie_accel as ea
from ernie_accel.bench.statistics import ratios, summarize

from .throughput import summary
from .work import VOCABULARY

LONG, SEEN, NEW = 2000, 1500, 16


def measure(model: ea.Model, chosen: argparse.Namespace) -> dict[str, Any]:
    """Alternate over the rounds; return what is written down."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        drawn: list[int] = draw.integers(3, VOCABULARY, count).tolist()
        return drawn

    cancels, chunks, first, again = [], [], [], []
    first_token(model, ids(LONG))  # warms up
    for _ in range(chosen.rounds):
        seconds, chunk = cancel(model, ids(LONG))
        cancels.append(seconds)
        chunks.append(chunk)
        beginning = ids(SEEN)
        model.clear_cache()
        first.append(first_token(model, beginning + ids(NEW)))
        again.append(first_token(model, beginning + ids(NEW)))
    return {
        "cancel": {"prompt": LONG, "seconds": summary(cancels), "chunk_seconds": summary(chunks)},
        "seen": {
            "beginning": SEEN,
            "new": NEW,
            "first_time": summary(first),
            "again": summary(again),
            "ratio": asdict(summarize(ratios(first, again))),
        },
    }


def first_token(model: ea.Model, prompt: list[int]) -> float:
    """Return the seconds from the call to the first token."""
    return model.generate(prompt, max_tokens=1, temperature=0).timings.time_to_first_token


def cancel(model: ea.Model, prompt: list[int]) -> tuple[float, float]:
    """Cancel in the middle of a prompt; return the seconds until it is over, and those that a step takes on average."""
    model.clear_cache()
    before = model.metrics()
    handle = model.submit(prompt, max_tokens=8, temperature=0)
    while model.metrics().counters["steps"] == before.counters["steps"]:  # answered between two steps
        pass
    begin = time.perf_counter()
    handle.cancel()
    done = handle.result()
    seconds = time.perf_counter() - begin
    assert (done.finish_reason, done.token_ids) == ("cancelled", ())
    after = model.metrics()
    steps = after.counters["steps"] - before.counters["steps"]
    total = after.histograms["step_seconds"].total - before.histograms["step_seconds"].total
    return seconds, total / steps
