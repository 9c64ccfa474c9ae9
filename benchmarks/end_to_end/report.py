"""From the values of all rounds to a result: everything that a reader needs to judge the figures or to repeat them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from ernie_accel.bench.machine import describe, versions
from ernie_accel.bench.statistics import ratios, summarize
from ernie_accel.bench.workload import Workload

from .contest import Values
from .engines import ENGINES

Result = dict[str, Any]


def report(
    command: str,
    shape: str,
    threads: int,
    workload: Workload,
    values: Mapping[str, Values],
    label: str = "",
) -> Result:
    """Return what is written as JSON. Ratios are taken within rounds."""
    packages = dict.fromkeys(package for name in values for package in ENGINES[name].distributions)
    return {
        "name": "-".join(filter(None, (shape, label, workload.name))),
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": describe(),
        "versions": versions(list(packages)),
        "shape": shape,
        "workload": asdict(workload),
        "threads": threads,
        "rounds": len(next(iter(values.values())).rates),
        "read_bandwidth": summary([value for kept in values.values() for value in kept.ceilings]),
        "engines": {name: engine(name, workload, kept) for name, kept in values.items()},
        "ratio": {
            name: {
                other: asdict(summarize(ratios(kept.rates, theirs.rates)))
                for other, theirs in values.items()
                if other != name
            }
            for name, kept in values.items()
            if ENGINES[name].ours
        },
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every value."""
    return {**asdict(summarize(values)), "values": list(values)}


def engine(name: str, workload: Workload, kept: Values) -> dict[str, Any]:
    """What one engine gave; for decoding with the share of the read bandwidth that it used, where bytes are known."""
    made: dict[str, Any] = {"title": ENGINES[name].title, "tokens_per_second": summary(kept.rates)}
    if kept.token is not None:
        made["first_token"] = kept.token
    if kept.peak:
        made["peak_memory"] = kept.peak
    if kept.step_bytes:
        used = [size * rate / workload.batch for size, rate in zip(kept.step_bytes, kept.rates, strict=True)]
        made["step_bytes"] = int(median(kept.step_bytes))
        made["bandwidth_share"] = asdict(summarize(ratios(used, kept.ceilings)))
    return made


def best_peer(result: Result) -> str | None:
    """The engine that is not ours and has the highest median."""
    peers = {name: made for name, made in result["engines"].items() if not ENGINES[name].ours}
    return max(peers, key=lambda name: peers[name]["tokens_per_second"]["median"]) if peers else None
