"""Compare engines and write what was measured, with machine and versions, to ``benchmarks/results``."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ernie_accel.bench.machine import busy, read_bandwidth
from ernie_accel.bench.workload import Workload, workloads

from .arguments import parse
from .contest import contestant, one_at_a_time, together
from .engines import ENGINES
from .publish import publish, table
from .report import report

ROOT = Path(__file__).parents[2]
BUSY = 0.1  # share of the processors from which on figures are not written down


def quiet(tries: int = 1) -> bool:
    """Whether the machine is ours alone; engines that share it with others are slowed unequally."""
    for _ in range(tries):
        share = busy() or 0.0
        if share <= BUSY:
            return True
    print(f"note: others take {share:.0%} of the processors, so nothing is written down", file=sys.stderr)
    return False


def settings(chosen: argparse.Namespace, plan: list[Workload]) -> dict[str, Any]:
    """What every engine is told: see ``peers.base.Setup``."""
    longest = max(w.context + w.room(chosen.rounds) for w in plan)
    return {
        "shape": chosen.shape,
        "threads": chosen.threads,
        "context": longest,
        "batch": max(w.batch for w in plan),
    }


def engines(chosen: argparse.Namespace) -> list[str]:
    """Names of those that run the shape; the others are named and left out."""
    able = [name for name in chosen.engines if ENGINES[name].moe or chosen.shape == "0.3B"]
    for name in sorted(set(chosen.engines) - set(able)):
        print(f"note: {name} has no mixture of experts here and is left out", file=sys.stderr)
    return able


def main() -> None:
    chosen = parse(sys.argv[1:])
    plan = workloads(chosen.prefill, chosen.decode, chosen.batch, chosen.request)
    contest = one_at_a_time if chosen.one_at_a_time else together
    start = partial(contestant, settings=settings(chosen, plan))
    alone = quiet(tries=5)  # what went before may still be on its way out
    command = "scripts/bench " + shlex.join(sys.argv[1:])
    for workload, values in contest(
        start, engines(chosen), plan, chosen.rounds, partial(read_bandwidth, chosen.threads)
    ):
        result = report(command, chosen.shape, chosen.threads, workload, values, chosen.label)
        print(f"\n{result['name']}\n{table(result)}", flush=True)
        alone = quiet() and alone
        if alone and not chosen.no_save:
            print("written to", *(path.relative_to(ROOT) for path in publish(result, ROOT)), flush=True)


if __name__ == "__main__":
    main()
