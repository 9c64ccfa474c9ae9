"""What a draft of multi-token prediction costs, and how often it must be right to pay: 21B-A3B with random weights.

No trained checkpoint is used: how many drafts are right is not measured here, only how many must be. Two cuts of the
shape, of some layers each, are measured, and a line through both gives the whole of it. Tokens are random, each round
has others. How much the experts of a checked token cost depends on how many of them the token before it chose too:
with these weights, that is most. The other end is a step with as many tokens of other texts, which choose for
themselves.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import ernie_accel as ea
from benchmarks.end_to_end.formats.cache import MODELS, cached
from benchmarks.end_to_end.formats.checkpoint import random_checkpoint
from benchmarks.end_to_end.formats.our_directory import MAKERS, ROOT, fingerprint
from ernie_accel.architecture import published_config
from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions, Runner, Select, Step
from ernie_accel.backends.capabilities import Drafts
from ernie_accel.bench.machine import busy, describe, versions
from ernie_accel.bench.statistics import alternate, summarize
from ernie_accel.checkpoint import open_checkpoint

SHAPE = "21B-A3B"
RESULTS = Path(__file__).parent / "results"
PARTS = ("one", "two", "apart", "draft")
"""A step of one token for each sequence; one that checks a draft for each; one of a token for each of twice as many
sequences; and the making of drafts."""


def directory(layers: int, precision: Any) -> Path:
    """Return a quantised cut of the shape, which is made once."""

    def make(path: Path) -> None:
        ea.quantize(random_checkpoint(SHAPE, layers=layers), path, precision=precision)

    version = fingerprint([ROOT / maker for maker in MAKERS])
    return cached(f"{SHAPE}-{layers}-layers-{precision}-{version}", make, MODELS)


class Contest:
    """Sequences of one length; whatever is measured leaves them as they were."""

    def __init__(self, runner: Runner, sequences: int, context: int) -> None:
        assert isinstance(runner, Drafts)
        self._runner, self._drafts = runner, runner
        self._length = context
        rng = np.random.default_rng(0)
        most = runner.info.vocab_size
        self._rng, self._most = rng, most
        self._last: list[int] = rng.integers(3, most, 2 * sequences).tolist()
        self.turn()
        self._all = [runner.open() for _ in self._last]
        self._seqs = self._all[:sequences]
        for seq, last in zip(self._all, self._last, strict=True):
            ids = [int(i) for i in rng.integers(3, most, context - 1)]
            runner.forward([Step(seq, [*ids, last], rows=0)])
        while not all(self._ask()):
            pass

    def turn(self) -> None:
        """Let other tokens follow from now on."""
        self._next = self._rng.integers(3, self._most, (len(self._last), 2)).tolist()

    def step(self, rows: int, twice: bool = False) -> float:
        """Seconds of a step in which each sequence, or twice as many, draws after each of ``rows`` tokens."""
        seqs = self._all if twice else self._seqs
        steps = [
            Step(seq, ids[:rows], rows=rows, output="select", select=Select())
            for seq, ids in zip(seqs, self._next, strict=False)
        ]
        began = time.perf_counter()
        self._runner.forward(steps)
        seconds = time.perf_counter() - began
        for seq in seqs:
            self._runner.truncate(seq, self._length)
        return seconds

    def draft(self) -> float:
        """Seconds of drafts for all, of which each catches up with a draft that was right."""
        for seq in self._seqs:
            self._runner.truncate(seq, self._length - 1)
        self._runner.forward(
            [Step(s, [last], rows=0) for s, last in zip(self._seqs, self._last, strict=False)]
        )
        began = time.perf_counter()
        self._ask()
        return time.perf_counter() - began

    def _ask(self) -> list[tuple[int, ...]]:
        return self._drafts.draft(self._seqs, [ids[0] for ids in self._next[: len(self._seqs)]], 1)

    def close(self) -> None:
        for seq in self._all:
            self._runner.free(seq)


def measure(layers: int, chosen: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Return the seconds of each part, round by round, for each number of sequences."""
    options = LoadOptions(
        precision=chosen.precision,
        threads=chosen.threads,
        max_context=chosen.context + 64,
        max_batch=2 * max(chosen.sequences),
        multi_token=True,
    )
    with open_checkpoint(directory(layers, chosen.precision)) as checkpoint:
        runner = registry.choose("native").open(checkpoint, options)
    found: dict[int, dict[str, list[float]]] = {}
    for sequences in chosen.sequences:
        contest = Contest(runner, sequences, chosen.context)
        ways: dict[str, Callable[[], float]] = {
            "one": lambda c=contest: c.step(1),  # type: ignore[misc]
            "two": lambda c=contest: c.step(2),  # type: ignore[misc]
            "apart": lambda c=contest: c.step(1, twice=True),  # type: ignore[misc]
            "draft": contest.draft,
        }
        found[sequences] = {part: [] for part in PARTS}
        for index in range(chosen.rounds + 2):
            contest.turn()
            for part, (seconds,) in alternate(ways, 1).items():
                if index >= 2:  # the first warm up
                    found[sequences][part].append(seconds)
        contest.close()
    runner.close()
    return found


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return milliseconds."""
    return {part: 1e3 * summarize(seconds[part]).median for part in PARTS}


def whole(few: dict[str, float], many: dict[str, float], layers: tuple[int, int]) -> dict[str, float]:
    """Return milliseconds of all layers: a line through two cuts; the draft does not depend on how many there are."""
    total, (a, b) = published_config(SHAPE).num_hidden_layers, layers
    line = {part: many[part] + (many[part] - few[part]) * (total - b) / (b - a) for part in PARTS[:3]}
    return {**line, "draft": (few["draft"] + many["draft"]) / 2}


def needed(times: dict[str, float], check: str = "two") -> float:
    """Return the share of drafts that must be right: with share a, a step gives 1 + a tokens."""
    return (times[check] + times["draft"]) / times["one"] - 1


def row(name: str, sequences: int, times: dict[str, float]) -> str:
    cells = [f"{times[part]:.1f}" for part in PARTS]
    shares = [times["draft"] / times["one"], needed(times), needed(times, "apart")]
    return "| " + " | ".join([name, str(sequences), *cells, *(f"{share:.2f}" for share in shares)]) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench multi-token", description=__doc__)
    parser.add_argument("--precision", default="int4", choices=("int8", "int4"))
    parser.add_argument("--layers", type=int, nargs=2, default=[3, 6], help="of the two cuts")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    before = busy()
    print(
        "| layers | sequences | step, ms | checking a draft each | experts apart | drafting | drafting ÷ step | "
        "must be right | experts apart |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    made: dict[str, Any] = {}
    few, many = measure(chosen.layers[0], chosen), measure(chosen.layers[1], chosen)
    for sequences in chosen.sequences:
        small, large = medians(few[sequences]), medians(many[sequences])
        for layers, times in zip(chosen.layers, (small, large), strict=True):
            print(row(str(layers), sequences, times))
        all_layers = whole(small, large, (chosen.layers[0], chosen.layers[1]))
        print(row("all, by a line", sequences, all_layers), flush=True)
        made[str(sequences)] = {
            **{
                str(layers): {part: asdict(summarize(one[sequences][part])) for part in PARTS}
                for layers, one in zip(chosen.layers, (few, many), strict=True)
            },
            "all": {
                **all_layers,
                "needed": needed(all_layers),
                "needed_apart": needed(all_layers, "apart"),
            },
        }
    if chosen.no_save:
        return
    name = f"multi-token-{chosen.precision}"
    result = {
        "name": name,
        "command": shlex.join(["scripts/bench", "multi-token", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": describe(),
        "versions": versions(["ernie-accel", "numpy"]),
        "others_busy": max(before or 0.0, busy() or 0.0),
        "shape": SHAPE,
        **{key: getattr(chosen, key) for key in ("precision", "layers", "context", "threads", "rounds")},
        "sequences": made,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
