"""Say what this machine offers: instruction set, threads, memory, backends. Exit code 1 if no fast backend can run."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from ernie_accel.backends.registry import AUTO
    from ernie_accel.diagnosis import doctor

    report = doctor()
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if args.json else report)
    usable = any(row.ok for row in report.backends if row.name in AUTO["cpu"] + AUTO["gpu"])
    return 0 if usable else 1
