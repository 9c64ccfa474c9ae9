"""Time from ``Model.load`` of a quantised directory to the first token, in fresh interpreters, with the file cached."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ernie_accel.bench.statistics import summarize

# The import is measured by import_time.py.
PROGRAM = """
import json, sys, time
import numpy
import ernie_accel
ernie_accel.Model  # is imported when it is first named
start = time.perf_counter()
with ernie_accel.Model.load(sys.argv[1], threads=int(sys.argv[2]), progress=False) as model:
    loaded = time.perf_counter()
    done = model.generate(list(range(3, 19)), max_tokens=1, temperature=0, ignore_eos=True)
    end = time.perf_counter()
print(json.dumps({"load": loaded - start, "first token": end - start, "peak": done.timings.peak_memory}))
"""


def run(directory: Path, threads: int) -> dict[str, float]:
    """Load once in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(directory), str(threads)]
    values: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return values


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench load", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, help="default: made from --shape and --precision")
    parser.add_argument("--shape", default="0.3B", choices=("0.3B", "21B-A3B"))
    parser.add_argument("--precision", default="int8", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    return parser.parse_args()


def main() -> None:
    from benchmarks.end_to_end.formats.our_directory import our_directory

    chosen = arguments()
    directory = chosen.directory or our_directory(chosen.shape, chosen.precision)
    run(directory, chosen.threads)  # fills the file cache
    rounds = [run(directory, chosen.threads) for _ in range(chosen.rounds)]
    for name in ("load", "first token"):
        times = summarize([1e3 * values[name] for values in rounds])
        print(f"{name:<12} {times.median:8.1f} ms  ({times.low:.1f} to {times.high:.1f})")
    print(f"peak memory  {max(values['peak'] for values in rounds) / 2**20:8.0f} MiB, mapped files included")
    print(
        f"{directory.name}, a prompt of 16 tokens, {chosen.threads} threads, medians of {chosen.rounds} rounds"
    )


if __name__ == "__main__":
    main()
