"""What each ingredient of calibrated quantization gains: the recipe with one thing changed, in float32 arithmetic.

python -m benchmarks.accuracy.ingredients [poet | smollm2] --precision int4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import ernie_accel as ea
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.quant import (
    Calibration,
    LayerResult,
    QuantisedResults,
    QuantPrecision,
    Recipe,
    built_in_ids,
    quantise_data_free,
)
from ernie_accel.quant.activations import rounded
from ernie_accel.quant.data_free import kind_of
from ernie_accel.quant.evaluate import compare
from ernie_accel.tokenizer.load import load_tokenizer

from . import smollm2, texts
from .simulate import EMBEDDING, HEAD, Scheme, SimulatedModel

POET = Path(__file__).parents[2] / "examples/poet/model"

CHANGES: Mapping[str, dict[str, Any]] = {
    "the recipe": {},
    "no exact columns": {"exact_most": 0},
    "no smoothing": {"fold": False},
    "feedback the other way": {},  # filled in by precision
    "errors of earlier layers not made up for": {"follow": 0.0},
    "... made up for in full": {"follow": 1.0},
    "one scale tried": {"clips": (1.0,)},
    "2,048 tokens": {"tokens": 2048},
    "16,384 tokens": {"tokens": 16384},
}


def main() -> None:
    """Quantise, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="poet", choices=["poet", "smollm2"])
    parser.add_argument("--precision", default="int4", choices=get_args(QuantPrecision))
    parser.add_argument("--data", type=Path, default=texts.DATA, help="folder with the texts")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's file, instead of a download")
    parser.add_argument("--poems", type=int, default=100, help="held-out poems, for the poet")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens, for SmolLM2")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows of the table, by their beginnings")
    args = parser.parse_args()
    path = POET if args.model == "poet" else smollm2.ensure(args.gguf)
    print("| | KL, nats a token | perplexity | same top token | bits a weight |\n|---|---|---|---|---|")
    with ea.Model.load(path, precision="fp32", progress=False) as reference:
        assert reference.tokenizer is not None, "the checkpoint comes with a tokenizer"
        if args.model == "poet":
            judged = texts.poems(args.data, reference.tokenizer, args.poems)
        else:
            judged = texts.wikitext_windows(args.data, reference.tokenizer, args.windows, 512)
        for label, recipe, calibrated in variants(args.precision):
            if args.only and not label.startswith(tuple(args.only)):
                continue
            with open_checkpoint(path) as checkpoint:
                quantised = quantise(checkpoint, path, recipe, calibrated)
                found = compare(reference, SimulatedModel(quantised, scheme_of(quantised, recipe)), judged)
            print(
                f"| {label} | {found.kl:.5f} | {100 * found.perplexity_change:+.2f} % | {100 * found.top1:.2f} % "
                f"| {body_bits(quantised):.2f} |",
                flush=True,
            )


def variants(precision: QuantPrecision) -> Iterable[tuple[str, Recipe, bool]]:
    """Labels, recipes, and whether they see data."""
    recipe = Recipe.for_precision(precision)
    for label, change in CHANGES.items():
        if label.startswith("feedback"):
            other = "no error feedback" if recipe.feedback else "error feedback"
            yield other, replace(recipe, feedback=not recipe.feedback, follow=0.0), True
        elif recipe.follow > 0 or "follow" not in change:
            yield label, replace(recipe, **change), True
    yield "no data", recipe, False


def quantise(checkpoint: Checkpoint, path: Path, recipe: Recipe, calibrated: bool) -> QuantisedResults:
    """The checkpoint with the codes of a recipe."""
    ids = built_in_ids(checkpoint.config, load_tokenizer(path), recipe)
    results: Iterable[LayerResult] = (
        Calibration(checkpoint, recipe, ids.sequences)
        if calibrated
        else quantise_data_free(checkpoint, recipe)
    )
    return QuantisedResults(checkpoint, results, recipe, ids.description if calibrated else "")


def scheme_of(quantised: QuantisedResults, recipe: Recipe) -> Any:
    """For every matrix its values, and the rounding of its inputs."""

    def scheme(name: str) -> Scheme:
        if name not in quantised.names:
            return Scheme()
        matrix = quantised.matrix(name)
        kind = "head" if name in (EMBEDDING, HEAD) else kind_of(name) or "head"
        return Scheme(
            weights=lambda _: matrix.to_float32(),
            inputs=lambda x: rounded(x, recipe.activation_group(kind), matrix.exact),
        )

    return scheme


def body_bits(quantised: QuantisedResults) -> float:
    """Bits for each weight of the layers: codes, scales, factors, exact columns and their numbers."""
    bits = weights = 0
    for name in quantised.names:
        if name in (EMBEDDING, HEAD):
            continue
        matrix = quantised.matrix(name)
        weights += matrix.codes.size
        bits += matrix.bits * matrix.codes.size + 16 * (matrix.scales.size + matrix.exact_weights.size)
        bits += 32 * len(matrix.exact) + (0 if matrix.subs is None else 4 * matrix.subs.size)
    return bits / weights


if __name__ == "__main__":
    main()
