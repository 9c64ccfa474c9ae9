"""Say whether a model fits, how to divide it and how fast it can be, from its configuration alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ernie_accel.errors import ArgumentError

if TYPE_CHECKING:
    from ernie_accel.planner.plan import MemoryPlan

__all__ = ["add_arguments", "run"]

_SYSTEMS = ("fastdeploy", "paddle", "kubernetes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a shape (0.3B, 21B-A3B, 300B-A47B, VL-28B, VL-424B), directory or hub id",
    )
    parser.add_argument("--devices", help="such as 8xA100-80G, H100, cpu, cpu-64G (default: this machine's)")
    parser.add_argument("--backend", default="auto", help="what computes (default: auto)")
    parser.add_argument("--precision", default="auto", help="fp32, bf16, fp8, int8, int4, w4a8, int2")
    parser.add_argument("--kv-precision", default="auto", help="of the KV cache (default: the backend's own)")
    load = parser.add_argument_group("load")
    load.add_argument("--max-context", type=int, help="tokens of each sequence (default: 8192)")
    load.add_argument("--max-batch", type=int, help="sequences that are decoded together (default: 1)")
    load.add_argument("--step-tokens", type=int, help="most tokens of one step: the chunk of prompts")
    load.add_argument("--memory-limit", type=int, metavar="BYTES", help="for the KV cache")
    load.add_argument("--threads", type=int, help="of a cpu (default: one for each physical core)")
    load.add_argument("--mtp", action="store_true", help="count the weights of multi-token prediction")
    split = parser.add_argument_group("division", "what is not given is chosen")
    split.add_argument(
        "--tensor-parallel", type=_degree, default="auto", help="devices that share every matrix"
    )
    split.add_argument("--pipeline-parallel", type=_degree, default=1, help="stages of layers (default: 1)")
    split.add_argument("--data-parallel", type=_degree, default="auto", help="copies of the model")
    split.add_argument("--expert-parallel", action="store_true", help="divide experts among all devices")
    split.add_argument(
        "--utilization", type=float, default=0.9, help="share of an accelerator's memory to use"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--explain", action="store_true", help="derive the numbers in words")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--plot", metavar="FILE", help="save a picture, PNG or SVG (extra: plot)")
    output.add_argument("--to", choices=_SYSTEMS, help="print the settings of another system, as JSON")
    output.add_argument(
        "--ips",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="with --to fastdeploy: addresses of the machines that share a copy of the model, the first serves",
    )
    output.add_argument(
        "--advice",
        choices=("accuracy", "latency", "memory"),
        help="choose precision, division and batch for an aim",
    )
    output.add_argument(
        "--verify",
        action="store_true",
        help="then load it in a fresh process, fill the context of every sequence, and compare",
    )
    output.add_argument(
        "--no-probe",
        action="store_true",
        help="assume a cpu's bandwidth instead of measuring it for a moment",
    )
    output.add_argument("--revision", help="of a hub id")
    output.add_argument("--cache-dir", help="where files of hub ids are kept")


def run(args: argparse.Namespace) -> int:
    """Print the plan; 0 if it fits, 1 if it does not."""
    if args.advice:
        return _advise(args)
    from ernie_accel.planner.planning import plan

    made = plan(args.model, precision=args.precision, **_settings(args))
    if args.plot:
        made.plot(args.plot)
    print(_shown(made, args))
    if args.verify:
        made.check()
        from ernie_accel.verification import verify

        print(verify(made, args.model))
    return 0 if made.fits else 1


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = (
        "devices",
        "backend",
        "kv_precision",
        "max_context",
        "max_batch",
        "step_tokens",
        "memory_limit",
        "threads",
        "tensor_parallel",
        "pipeline_parallel",
        "data_parallel",
        "expert_parallel",
        "utilization",
        "mtp",
        "revision",
        "cache_dir",
    )
    return {**{name: getattr(args, name) for name in names}, "probe": not args.no_probe}


def _shown(made: MemoryPlan, args: argparse.Namespace) -> str:
    import json

    if args.ips and args.to != "fastdeploy":
        raise ArgumentError("--ips: goes with --to fastdeploy")
    if args.to:
        settings = {
            "fastdeploy": lambda: made.to_fastdeploy(ips=args.ips),
            "paddle": made.to_paddle,
            "kubernetes": made.to_kubernetes,
        }[args.to]()
        return json.dumps(settings, indent=2)
    if args.json:
        return made.to_json()
    return made.explain() if args.explain else made.table()


def _advise(args: argparse.Namespace) -> int:
    from ernie_accel.planner.advice import advise

    if args.precision != "auto":
        raise ArgumentError("--precision: --advice chooses it; leave one of them out")
    found = advise(args.model, args.advice, **_settings(args))
    print(repr(found))
    return 0 if found.plan.fits else 1


def _degree(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto or a whole number") from None
