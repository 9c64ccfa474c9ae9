"""Whether draws from bounds of the vocabulary head are those of the whole head: on held-out text, position by position.

``python -m benchmarks.accuracy.nested_head [--model DIRECTORY] [--poems N]``; see csrc/model/nested_head.cc.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import ernie_accel as ea
from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions, Runner, Select, Step
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.tokenizer import load_tokenizer
from ernie_accel.types import Precision

from . import texts

POET = Path(__file__).parents[2] / "examples/poet/model"
ROWS = 4
"""Positions of one step; the native backend bounds no more at a time."""


def draws(runner: Runner, ids: Sequence[int], top_k: int) -> list[int]:
    """The token that is drawn after every prefix of ``ids``: the best, or by the seed among the ``top_k`` best."""
    select = Select(temperature=1.0 if top_k else 0.0, top_k=top_k, seed=7)
    sequence = runner.open()
    drawn: list[int] = []
    for at in range(0, len(ids), ROWS):
        some = ids[at : at + ROWS]
        (result,) = runner.forward([Step(sequence, some, rows=len(some), output="select", select=select)])
        drawn += result.token_ids or ()
    runner.free(sequence)
    return drawn


def disagreements(
    model: Path, precision: Precision, sequences: Iterable[Sequence[int]], top_k: int
) -> tuple[int, int]:
    """Positions, and how many of them the two ways draw another token for."""
    runners = []
    for whole in (False, True):
        options = LoadOptions(
            precision=precision,
            backend_options=ea.NativeOptions(whole_head=whole),
            max_batch=1,
            max_context=2048,
        )
        with open_checkpoint(model) as checkpoint:
            runners.append(registry.choose("native").open(checkpoint, options))
    positions = different = 0
    for ids in sequences:
        pairs = list(zip(*(draws(runner, ids, top_k) for runner in runners), strict=True))
        positions += len(pairs)
        different += sum(a != b for a, b in pairs)
    for runner in runners:
        runner.close()
    return positions, different


def main() -> None:
    """Print one line for each precision and way of drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=POET, help="a checkpoint with a tokenizer")
    parser.add_argument("--data", type=Path, default=texts.DATA, help="folder with the texts")
    parser.add_argument("--poems", type=int, default=1600, help="held-out poems, of 3,336")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model)
    if tokenizer is None:
        raise SystemExit(f"error: {args.model} has no tokenizer")
    sequences = texts.poems(args.data, tokenizer, args.poems)
    precisions: tuple[Precision, ...] = ("int8", "int4")
    for precision in precisions:
        for top_k in (0, 20):
            positions, different = disagreements(args.model, precision, sequences, top_k)
            print(
                f"{precision}, {f'top-k {top_k}' if top_k else 'greedy'}: {different} of {positions:,} positions differ"
            )


if __name__ == "__main__":
    main()
