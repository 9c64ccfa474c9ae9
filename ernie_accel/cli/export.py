"""Write a checkpoint's decoder step as a graph for another engine, checked against the reference."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="directory or hub id of an unquantized checkpoint")
    parser.add_argument("target", metavar="TARGET", help="directory to create")
    parser.add_argument("--format", default="onnx", help="of the graph: onnx or paddle (default: onnx)")
    parser.add_argument(
        "--precision", default="fp32", help="onnx: fp32, fp16 or int8; paddle: fp32 or bf16 (default: fp32)"
    )
    parser.add_argument(
        "--report", action="store_true", help="also time a step with and without each fusion (some minutes)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no-progress", action="store_true", help="show no bar")


def run(args: argparse.Namespace) -> int:
    """Write the graph, and print the report."""
    from ernie_accel.display import text_table
    from ernie_accel.exporting import export_graph

    report = export_graph(
        args.source,
        args.target,
        format=args.format,
        precision=args.precision,
        time_fusions=args.report,
        progress=False if args.no_progress else None,
    )
    print(
        json.dumps(asdict(report), indent=2, ensure_ascii=False) if args.json else text_table(report.rows())
    )
    return 0
