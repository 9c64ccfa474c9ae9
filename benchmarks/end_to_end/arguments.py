"""The command line of ``scripts/bench``: read before anything is installed, so with the standard library alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .engines import DEFAULT, ENGINES

LONG_ENGINES = (
    "ours-int8",
    "ours-int4",
    "ours-int8-kv16",
    "ours-int4-kv16",
    "llama-q8",
    "llama-q4",
    "openvino-int8",
    "onnx-int4",
)
"""Fewer than elsewhere, since each reads a long prompt first."""

LATENCY_ENGINES = (
    "ours-int8",
    "ours-bf16",
    "paddle-bf16",
    "fastdeploy-ort",
    "fastdeploy-openvino",
    "onnxruntime-int8",
    "torch-bf16",
    "torch-fp32",
)
"""What this library runs on, each at its best precision, and the library that most programs use."""

COMMANDS: dict[str, list[str]] = {
    "compare": [],
    "decode": ["--decode", "32"],
    "prefill": ["--prefill", "512"],
    "batch": ["--decode", "32", "--batch", "16", "--rounds", "5"],
    "long": ["--decode", "8192", "--rounds", "3", "--engines", *LONG_ENGINES],
    "latency": [
        *("--request", "512", "--decode", "32", "--batch", "16", "--rounds", "5"),
        *("--label", "backends", "--engines", *LATENCY_ENGINES),
    ],
    "moe": ["--shape", "21B-A3B", "--prefill", "128", "--decode", "32", "--rounds", "3", "--one-at-a-time"],
}
"""What each subcommand adds to the options that are given; ``compare`` adds nothing."""

MOE_ENGINES = ("ours-int4", "ours-int4-resident", "llama-q4")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options, engines and workloads settled. The subcommand comes first."""
    added = COMMANDS.get(argv[0], []) if argv else []
    chosen = parser().parse_args([*argv[:1], *added, *argv[1:]])
    if not chosen.prefill and not chosen.decode and not chosen.request:
        chosen.prefill, chosen.decode = [512], [32]
    if not chosen.engines:
        chosen.engines = list(DEFAULT if chosen.shape == "0.3B" else MOE_ENGINES)
    return chosen


def parser() -> argparse.ArgumentParser:
    """Describe the options."""
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compare engines side by side in one run, alternating. decode, prefill, batch, long, latency and "
        "moe are compare with the workload chosen: "
        + "; ".join(f"{name}: {' '.join(options)}" for name, options in COMMANDS.items() if options)
        + ". Others: import, kernels.",
    )
    made.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    made.add_argument("--shape", default="0.3B", choices=("0.3B", "21B-A3B"))
    made.add_argument(
        "--prefill", type=int, nargs="+", default=[], metavar="TOKENS", help="lengths of a prompt"
    )
    made.add_argument(
        "--decode", type=int, nargs="+", default=[], metavar="TOKENS", help="contexts to decode at"
    )
    made.add_argument(
        "--request",
        type=int,
        nargs="+",
        default=[],
        metavar="TOKENS",
        help="prompts of requests for 64 tokens",
    )
    made.add_argument(
        "--batch", type=int, nargs="+", default=[1], help="sequences decoded together (default: 1)"
    )
    made.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"of {', '.join(ENGINES)} (default: most)",
    )
    made.add_argument("--threads", type=int, default=2, help="of each engine (default: 2)")
    made.add_argument("--rounds", type=int, default=7, help="default: 7")
    made.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="load each engine anew in each round: for models of which two do not fit",
    )
    made.add_argument(
        "--label", default="", help="part of the name of results, beside which others of the workload stay"
    )
    made.add_argument(
        "--no-save",
        action="store_true",
        help="print only; else results and tables in the documentation are written, if the machine is quiet",
    )
    return made


if __name__ == "__main__":
    import sys

    parse(sys.argv[1:])
