"""Split a checkpoint among ranks that compute it together, put such ranks together again, or verify them."""

from __future__ import annotations

import argparse
import json

from ernie_accel.errors import ArgumentError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="directory or hub id of an unquantized checkpoint; with --merge, or --verify alone, a directory of ranks",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="directory to create; the same command finishes one that was interrupted",
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="among how many to split")
    parser.add_argument(
        "--experts",
        choices=("cut", "whole"),
        default="cut",
        help="cut divides the width of every expert, whole gives each rank some of them (default: cut)",
    )
    parser.add_argument("--merge", action="store_true", help="put ranks together again, bit for bit")
    parser.add_argument(
        "--verify", action="store_true", help="read what was written and compare it with its hashes"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--no-progress", action="store_true", help="show no bar")


def run(args: argparse.Namespace) -> int:
    """Do one of the three, and print what was done."""
    from ernie_accel.display import text_table

    rows = _do(args)
    print(json.dumps(dict(rows), indent=2, ensure_ascii=False) if args.json else text_table(rows))
    return 0


def _do(args: argparse.Namespace) -> list[tuple[str, str]]:
    from ernie_accel.checkpoint.shard import merge
    from ernie_accel.display import size

    progress = False if args.no_progress else None
    if args.target is None:
        if args.merge or args.ranks is not None or not args.verify:
            raise ArgumentError("TARGET is missing: name the directory to create, or give --verify alone")
        return _verified(args.source, progress)
    if args.merge == (args.ranks is not None):
        raise ArgumentError("give one of the two: --ranks N to split, or --merge")
    if args.ranks is not None:
        return _split(args, progress)
    merged = merge(args.source, args.target, progress=progress)
    return [("directory", args.target), ("merged", f"{size(merged)}, each tensor with the hash that it had")]


def _split(args: argparse.Namespace, progress: bool | None) -> list[tuple[str, str]]:
    from ernie_accel.checkpoint.shard import split
    from ernie_accel.hub import resolve
    from ernie_accel.progress import reporting

    with reporting(progress) as report:
        source = resolve(args.source, progress=report or (lambda stage, done, total: None))
    done = split(source, args.target, ranks=args.ranks, experts=args.experts, progress=progress)
    return [*done.rows(), *(_verified(args.target, progress) if args.verify else [])]


def _verified(directory: str, progress: bool | None) -> list[tuple[str, str]]:
    from ernie_accel.checkpoint.shard import verify
    from ernie_accel.display import size

    return [("verified", f"{size(verify(directory, progress=progress))} are what was written")]
