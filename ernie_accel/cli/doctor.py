"""Say what this machine offers: instruction set, threads, memory, backends. Exit code 1 if no fast backend can run, or
if the one that was named cannot start as asked."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="directory of a checkpoint to look at too")
    parser.add_argument("--backend", help="look at what this one needs before it starts")
    parser.add_argument("--precision", default="auto", help="of the weights (default: auto)")
    parser.add_argument("--device", help="for instance gpu:0,1")
    parser.add_argument("--max-context", type=int, help="tokens of prompt and output")
    parser.add_argument(
        "--tensor-parallel", type=int, default=1, help="devices that share the model (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from ernie_accel.backends.registry import AUTO
    from ernie_accel.diagnosis import doctor

    report = doctor(
        args.model,
        backend=args.backend,
        precision=args.precision,
        device=args.device,
        max_context=args.max_context,
        tensor_parallel=args.tensor_parallel,
    )
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if args.json else report)
    usable = any(row.ok for row in report.backends if row.name in AUTO["cpu"])
    looked = [preflight.ok for preflight in report.preflights]
    ready = args.backend is None or all(
        looked or [row.ok for row in report.backends if row.name == args.backend]
    )
    return 0 if usable and ready else 1
