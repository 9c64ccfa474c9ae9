"""Say what a checkpoint directory holds; reads its headers only, whatever its size, unless it is asked to verify."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ernie_accel.types import ModelInfo

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("path", metavar="PATH", help="directory of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="of a quantized directory: read all of it and compare it with the hashes recorded when it was written",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from ernie_accel.checkpoint import inspect
    from ernie_accel.display import text_table

    info = inspect(args.path)
    if args.verify:
        _verify(args.path)
    print(json.dumps(_plain(info), indent=2, ensure_ascii=False) if args.json else text_table(info.rows()))
    return 0


def _verify(path: str) -> None:
    from ernie_accel.checkpoint import open_checkpoint
    from ernie_accel.checkpoint.packed import PackedCheckpoint
    from ernie_accel.checkpoint.packed.verify import verify
    from ernie_accel.display import size
    from ernie_accel.errors import ArgumentError
    from ernie_accel.progress import reporting

    with open_checkpoint(path) as checkpoint:
        if not isinstance(checkpoint, PackedCheckpoint):
            raise ArgumentError(f"--verify: {path} is no quantized directory; a checkpoint records no hashes")
        with reporting(None) as progress:
            compared = verify(checkpoint.path, checkpoint.header, progress)
    print(f"verified: {size(compared)} are what was written", file=sys.stderr)


def _plain(info: ModelInfo) -> dict[str, Any]:
    loaded = (
        "backend",
        "precision",
        "kv_precision",
        "recipe",
    )  # nothing is loaded here; a quantized one has two of them
    values = {name: value for name, value in vars(info).items() if name not in loaded or value is not None}
    return {**values, "total_parameters": info.total_parameters, "total_bytes": info.total_bytes}
