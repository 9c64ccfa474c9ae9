"""The command line of ``scripts/bench serving``: read before anything is installed, with the standard library alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

EXPERIMENTS = {
    "throughput": "tokens a second with so many requests at a time: one after the other, in batches that begin and end "
    "together, continuously, and llama.cpp continuously",
    "arrivals": "requests that come at random times, at a share of what the model can do: time to first token and "
    "between tokens, beside batches in the order of arrival",
    "moments": "how soon a cancel ends a long prompt, and what a beginning that was seen before saves",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    chosen = parser().parse_args(argv)
    chosen.work = chosen.work or ("mixed" if chosen.experiment == "arrivals" else "even")
    return chosen


def parser() -> argparse.ArgumentParser:
    """Describe the options."""
    made = argparse.ArgumentParser(
        prog="scripts/bench serving",
        description="; ".join(f"{name}: {what}" for name, what in EXPERIMENTS.items()),
    )
    made.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT")
    made.add_argument("--shape", default="0.3B", choices=("0.3B",))
    made.add_argument("--precision", default="int8", choices=("int8", "int4"))
    made.add_argument(
        "--work",
        choices=("even", "mixed"),
        help="even: prompts of 128 and 64 tokens after them, what throughput takes unless told otherwise; mixed: the "
        "same on average, what arrivals takes",
    )
    made.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 4, 16, 32],
        help="requests at a time, for throughput",
    )
    made.add_argument(
        "--llama",
        type=int,
        nargs="*",
        default=[16],
        help="requests at a time that llama.cpp is given; nothing leaves it out (default: 16, where it is fastest)",
    )
    made.add_argument(
        "--formats",
        nargs="+",
        default=["Q8_0", "BF16"],
        choices=("Q8_0", "Q4_0", "BF16"),
        help="of llama.cpp's weights (default: Q8_0 BF16)",
    )
    made.add_argument(
        "--load", type=float, default=0.7, help="arrivals: share of the capacity (default: 0.7)"
    )
    made.add_argument("--requests", type=int, default=96, help="arrivals: requests a round (default: 96)")
    made.add_argument("--batch", type=int, default=16, help="arrivals: size of the batches (default: 16)")
    made.add_argument(
        "--latency-target", type=float, default=0.05, help="arrivals: of the second way (default: 0.05)"
    )
    made.add_argument("--threads", type=int, default=2, help="of each engine (default: 2)")
    made.add_argument("--rounds", type=int, default=3, help="default: 3")
    made.add_argument("--no-save", action="store_true", help="print only")
    return made


if __name__ == "__main__":
    import sys

    parse(sys.argv[1:])
