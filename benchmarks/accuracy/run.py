"""Compare what the library loads, and baselines, with its float32 on trained models and held-out text."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import ernie_accel as ea
from ernie_accel import QuantizationReport
from ernie_accel.bench.machine import describe, versions
from ernie_accel.progress import reporting
from ernie_accel.quant import QuantPrecision
from ernie_accel.quant.evaluate import Comparison, compare_all

from . import smollm2, texts
from .candidates import CANDIDATES, native, quantise
from .last_words import right
from .publish import publish, table

ROOT = Path(__file__).parents[2]
POET = ROOT / "examples/poet/model"
WINDOW = 512
PARTS = ["poet", "smollm2", "last-words"]
LAST_WORDS = ("int8", "int8, int8 cache", "int4")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench accuracy", description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, default=texts.DATA, help="folder with the texts")
    parser.add_argument(
        "--gguf", type=Path, help="SmolLM2's file or the wheel with it, instead of a download"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(CANDIDATES)}")
    parser.add_argument("--windows", type=int, default=64, help=f"of {WINDOW} tokens, for SmolLM2")
    parser.add_argument("--poems", type=int, default=1000, help="held-out poems, drawn at random, of 3,336")
    parser.add_argument("--passages", type=int, default=1000, help="of which the last word is asked for")
    parser.add_argument(
        "--keep", action="store_true", help="use quantised directories that an earlier run made"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    args = parser.parse_args()
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"{name}: must be of {', '.join(PARTS)}")
    for name in args.only or ():
        if name not in CANDIDATES:
            parser.error(f"--only {name!r}: must be of {', '.join(CANDIDATES)}")
    return args


def main() -> None:
    """Measure, print, and write down."""
    args = parse_arguments()
    for part in args.parts:
        path = POET if part == "poet" else smollm2.ensure(args.gguf)
        result = {**about(part), **(last_words if part == "last-words" else measure)(part, path, args)}
        print(table(result), flush=True)
        if not args.dry_run:
            for page in publish(result, ROOT):
                print(f"wrote {page.relative_to(ROOT)}", file=sys.stderr)


def about(part: str) -> dict[str, Any]:
    """What every result says of itself."""
    return {
        "name": part,
        "command": shlex.join(["scripts/bench", "accuracy", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": describe(),
        "versions": {"ernie-accel": ea.__version__, **versions(["numpy", "tokenizers"])},
    }


def reports_of(path: Path, names: Sequence[str], keep: bool) -> dict[str, QuantizationReport]:
    """Quantise for every precision that a candidate needs."""
    return {
        precision: quantise(path, precision, keep)
        for precision in get_args(QuantPrecision)
        if any(name.startswith(precision) for name in names)
    }


def measure(name: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity, KL and agreement of one trained model's candidates."""
    names = args.only or list(CANDIDATES)
    reports = reports_of(path, names, args.keep)
    with ea.Model.load(path, precision="fp32", progress=False) as reference:
        sequences = read(name, reference, args)
        found = compare_in_turn(reference, path, names, sequences)
    return {
        "sequences": len(sequences),
        "tokens": texts.total(sequences),
        "about": {candidate: CANDIDATES[candidate].about for candidate in names},
        "models": {
            key: {**asdict(value), "perplexity_change": value.perplexity_change}
            for key, value in found.items()
        },
        "bits": {precision: report.bits_per_weight for precision, report in reports.items()},
        "recipes": {precision: report.recipe for precision, report in reports.items()},
    }


def read(name: str, model: ea.Model, args: argparse.Namespace) -> list[list[int]]:
    """The held-out text of a model, as token ids."""
    assert model.tokenizer is not None, "the checkpoint comes with a tokenizer"
    if name == "poet":
        return texts.poems(args.data, model.tokenizer, args.poems)
    return texts.wikitext_windows(args.data, model.tokenizer, args.windows, WINDOW)


def compare_in_turn(
    reference: ea.Model, path: Path, names: Sequence[str], sequences: Sequence[Sequence[int]]
) -> dict[str, Comparison]:
    """All candidates beside one reference, whose logits are computed once."""
    models = {name: CANDIDATES[name].load(path) for name in names}
    try:
        with reporting(None) as report:
            return compare_all(reference, models, sequences, progress=report)
    finally:
        for model in models.values():
            model.close()


def last_words(name: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """How many passages end in the right word, for float32 and for some of the candidates."""
    passages = texts.passages(args.data, args.passages)
    names = [candidate for candidate in LAST_WORDS if candidate in (args.only or LAST_WORDS)]
    reports_of(path, names, args.keep)
    counts: dict[str, int] = {}
    for candidate in ("fp32", *names):
        load = CANDIDATES[candidate].load if candidate in CANDIDATES else native("fp32")
        model = load(path)
        assert isinstance(model, ea.Model)
        with model:
            counts[candidate] = sum(right(model, passages))
    return {"passages": len(passages), "right": counts}


if __name__ == "__main__":
    main()
