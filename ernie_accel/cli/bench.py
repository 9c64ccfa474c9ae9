"""Measure how fast a model runs on this machine: prompts, decoding, batches, and with --profile where the time goes.

Prompts are random ids and end tokens are ignored, and tokens are drawn greedily: --shape takes a published shape
with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_accel.cli.options import add_model_arguments, load_model
from ernie_accel.errors import ArgumentError

if TYPE_CHECKING:
    from ernie_accel.bench.measure import Measured
    from ernie_accel.model import Model

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    add_model_arguments(parser, optional=True)
    parser.add_argument("--shape", help="instead of MODEL: 0.3B, 21B-A3B or 300B-A47B with random weights")
    group = parser.add_argument_group("workloads")
    group.add_argument(
        "--prefill", type=int, nargs="*", default=[128, 512], metavar="TOKENS", help="default: 128 512"
    )
    group.add_argument(
        "--decode", type=int, nargs="*", default=[32], metavar="TOKENS", help="contexts (default: 32)"
    )
    group.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1, 4, 16],
        help="sequences decoded together (default: 1 4 16)",
    )
    group.add_argument(
        "--rounds", type=int, default=5, help="repetitions, of which the median counts (default: 5)"
    )
    parser.add_argument("--profile", action="store_true", help="say where the time of a step goes")
    parser.add_argument("--json", metavar="FILE", help='write everything there, "-" prints it and no table')


def run(args: argparse.Namespace) -> int:
    """Measure and print tables."""
    from ernie_accel.bench.workload import workloads

    if (args.model is None) == (args.shape is None):
        raise ArgumentError("give either MODEL or --shape, a published shape with random weights")
    if args.rounds < 1:
        raise ArgumentError(f"rounds={args.rounds}: must be at least 1")
    plan = workloads(args.prefill, args.decode, args.batch)
    if not plan:
        raise ArgumentError("--prefill and --decode are both empty: there is nothing to measure")
    if args.shape is not None:
        from ernie_accel.testing import synthetic

        args.model = synthetic(args.shape)
    with load_model(args, max_batch=max(w.batch for w in plan)) as model:
        results = [_measure(model, args, workload) for workload in plan]
        _write(model, args, results)
    return 0


def _measure(model: Model, args: argparse.Namespace, workload: Any) -> Measured:
    from ernie_accel.bench.machine import read_bandwidth
    from ernie_accel.bench.measure import measure

    ceiling = partial(read_bandwidth, _threads(args))
    return measure(model, workload, model.config.vocab_size, args.rounds, ceiling, args.profile)


def _threads(args: argparse.Namespace) -> int:
    from ernie_accel import env, system

    return args.threads or env.threads() or system.available_threads()


def _write(model: Model, args: argparse.Namespace, results: list[Measured]) -> None:
    if args.json is not None:
        text = json.dumps(_report(model, args, results), indent=2, ensure_ascii=False)
        if args.json == "-":
            print(text)
            return
        half = Path(f"{args.json}.half")
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(args.json)
    print(_tables(model, args, results))


def _report(model: Model, args: argparse.Namespace, results: list[Measured]) -> dict[str, Any]:
    from ernie_accel.bench.machine import describe, versions
    from ernie_accel.bench.tables import plain
    from ernie_accel.diagnosis import doctor

    info = model.info
    return {
        "model": {
            name: getattr(info, name) for name in ("name", "backend", "precision", "kv_precision", "recipe")
        },
        "threads": _threads(args),
        "instruction_set": doctor().instruction_set,
        "machine": describe(),
        "versions": versions(["ernie-accel", "numpy"]),
        "command": ["ernie-accel", *sys.argv[1:]],
        "results": [plain(result) for result in results],
    }


def _tables(model: Model, args: argparse.Namespace, results: list[Measured]) -> str:
    from ernie_accel.bench.statistics import summarize
    from ernie_accel.bench.tables import profile_table, speed_table

    bandwidth = summarize([value for result in results for value in result.ceilings])
    lines = [
        f"{model.info.name}, {model.info.precision}, KV {model.info.kv_precision}, {_threads(args)} threads; "
        f"read bandwidth {bandwidth.median / 1e9:.1f} GB/s ({bandwidth.low / 1e9:.1f} to {bandwidth.high / 1e9:.1f})",
        speed_table(results),
    ]
    if args.profile:
        lines += [f"{result.workload.name}\n{profile_table(result)}" for result in results]
    return "\n\n".join(lines)
