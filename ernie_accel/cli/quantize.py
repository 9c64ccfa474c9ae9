"""Quantise a checkpoint into a directory that loads at once, and say what that does to its accuracy."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="directory or hub id of an unquantized checkpoint")
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="directory to create; the same command finishes one that was interrupted",
    )
    parser.add_argument("--precision", required=True, choices=("int8", "int4"), help="of the weights")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help='text to fit to: a text file, or .jsonl with a string or {"text": ...} a line (default: built-in text)',
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no-progress", action="store_true", help="show no bar")


def run(args: argparse.Namespace) -> int:
    """Quantise, and print the report."""
    from ernie_accel.display import text_table
    from ernie_accel.quant.directory import quantize

    report = quantize(
        args.source,
        args.target,
        precision=args.precision,
        calibration=args.calibration,
        progress=False if args.no_progress else None,
    )
    print(
        json.dumps(asdict(report), indent=2, ensure_ascii=False) if args.json else text_table(report.rows())
    )
    return 0
