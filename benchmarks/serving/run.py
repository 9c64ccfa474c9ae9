"""Measure one experiment and write it, with machine and versions, to ``benchmarks/results``."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ernie_accel as ea
from ernie_accel.bench.machine import describe, versions

from ..end_to_end.formats.our_directory import our_directory
from ..end_to_end.run import quiet
from . import arriving, moments, throughput
from .arguments import parse
from .publish import publish, table

ROOT = Path(__file__).parents[2]


def main() -> None:
    chosen = parse(sys.argv[1:])
    load = partial(
        ea.Model.load,
        our_directory(chosen.shape, chosen.precision),
        backend="native",
        threads=chosen.threads,
        progress=False,
    )
    alone = quiet(tries=5)
    result = {**conditions(chosen), **measured(load, chosen)}
    print(table(result), flush=True)
    if quiet() and alone and not chosen.no_save:
        print("written to", *(path.relative_to(ROOT) for path in publish(result, ROOT)))


def measured(load: Any, chosen: argparse.Namespace) -> dict[str, Any]:
    """Run the experiment."""
    if chosen.experiment == "arrivals":
        return arriving.measure(load, chosen)
    with load() as model:
        if chosen.experiment == "throughput":
            return throughput.measure(model, chosen)
        return moments.measure(model, chosen)


def conditions(chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything that a reader needs to judge the figures or to repeat them."""
    kind = "" if chosen.experiment == "moments" else f"-{chosen.work}"
    packages = ["ernie-accel", "numpy"]
    if chosen.experiment == "throughput" and chosen.llama:
        packages.append("llama-cpp-python")
    return {
        "name": f"{chosen.shape}-serving-{chosen.experiment}{kind}",
        "experiment": chosen.experiment,
        "command": "scripts/bench serving " + shlex.join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "machine": describe(),
        "versions": versions(packages),
        "shape": chosen.shape,
        "precision": chosen.precision,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
    }


if __name__ == "__main__":
    main()
