"""Requests at random times: how long each waits for its first token, and for every further one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

import ernie_accel as ea
from ernie_accel.bench.statistics import alternate, ratios, summarize

from .throughput import summary
from .ways import Served, continuously, first_come_first_served, on_arrival
from .work import arrivals, generated, items

PERCENTILES = (50, 95, 99)
FULL = 32
"""Requests at a time with which the capacity is measured."""


def capacity(model: ea.Model, kind: str) -> float:
    """Return requests a second when there are always enough."""
    work = items(kind, 2 * FULL, seed=1000)
    model.clear_cache()
    begin = time.perf_counter()
    continuously(model, work, FULL)
    return len(work) / (time.perf_counter() - begin)


def measure(load: Callable[..., ea.Model], chosen: argparse.Namespace) -> dict[str, Any]:
    """Let the ways take turns on the same arrivals; return what is written down."""
    served: dict[str, list[list[Served]]] = {}
    with ExitStack() as stack:
        plain = stack.enter_context(load())
        bounded = stack.enter_context(load(engine=ea.EngineOptions(latency_target=chosen.latency_target)))
        capacity(plain, chosen.work)  # warms up
        most = capacity(plain, chosen.work)
        rate = chosen.load * most

        def turn(name: str, model: ea.Model, serve: Callable[..., list[Served]]) -> float:
            rounds = served.setdefault(name, [])
            work = items(chosen.work, chosen.requests, seed=len(rounds))
            times = arrivals(chosen.requests, rate, seed=len(rounds))
            model.clear_cache()
            rounds.append(serve(model, work, times))
            assert sum(len(one.times) for one in rounds[-1]) == generated(work)
            return 0.0

        alternate(
            {
                "batches": partial(
                    turn, "batches", plain, partial(first_come_first_served, size=chosen.batch)
                ),
                "continuous": partial(turn, "continuous", plain, on_arrival),
                "latency-target": partial(turn, "latency-target", bounded, on_arrival),
            },
            chosen.rounds,
        )
    return {
        "work": chosen.work,
        "requests": chosen.requests,
        "load": chosen.load,
        "batch": chosen.batch,
        "latency_target": chosen.latency_target,
        "capacity": most,
        "ways": {name: row(rounds, served["batches"]) for name, rounds in served.items()},
    }


def row(rounds: Sequence[Sequence[Served]], batches: Sequence[Sequence[Served]]) -> dict[str, Any]:
    """One way: percentiles of each round, of the first token and of the time between tokens."""
    made: dict[str, Any] = {}
    for what, seconds in {"first_token": firsts, "between_tokens": gaps}.items():
        for share in PERCENTILES:
            values = [percentile(seconds(served), share) for served in rounds]
            others = [percentile(seconds(served), share) for served in batches]
            made[f"{what}_{share}"] = {
                **summary(values),
                "batches_by_it": asdict(summarize(ratios(others, values))),
            }
        # For the plot: every percentile, over all rounds.
        made[f"{what}_curve"] = [
            percentile([value for served in rounds for value in seconds(served)], share)
            for share in range(1, 101)
        ]
    return made


def firsts(served: Sequence[Served]) -> list[float]:
    """Seconds to the first token, of each request."""
    return [one.first for one in served]


def gaps(served: Sequence[Served]) -> list[float]:
    """Seconds between tokens, of all requests."""
    return [gap for one in served for gap in one.gaps]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` per cent do not exceed."""
    return float(np.percentile(values, share))
