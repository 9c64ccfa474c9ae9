"""Smoothing: factors that make activations even and are folded into what stands before and behind them.

Columns of a matrix times s and its inputs divided by s give the same results; both sides of that are weights (a norm's
gains or rows of the matrix before), so that it costs nothing when the model runs (Xiao et al. 2022, "SmoothQuant"; Lin
et al. 2023, "AWQ"). Factors are powers of two: the float32 model then keeps its bits, and codes stay what they are
where only a scale is divided.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.quantised import QuantisedMatrix, bfloat16_bits, bfloat16_values
from ernie_accel.quant.activations import choose_exact, mean_squares, rounded
from ernie_accel.quant.calculator import Array, Calculator
from ernie_accel.quant.recipe import Kind, Recipe

__all__ = ["choose_factors", "divided_rows", "scaled"]

STRENGTHS = (0.25, 0.5, 0.75)
"""Factors that are tried are the root mean squares of the inputs to these powers."""
SAMPLE = 256
ROWS = 256
WORTH = 0.98
"""Share of the error that must be left at most: less than that is chance."""


def choose_factors(
    kind: Kind,
    weights: dict[str, Array],
    x: Array,
    recipe: Recipe,
    calculator: Calculator,
    owners: npt.NDArray[np.int64] | None = None,
) -> Array:
    """Return the powers of two, [K], with which matrices lose least when rounded to nearest; ones if none helps.

    Args:
        kind: What the matrices are.
        weights: Matrices that read x, [rows, K].
        x: Inputs, [T, K].
        recipe: How weights and inputs are rounded.
        calculator: What computes.
        owners: Columns of equal number have one factor, as those that read one row of the matrix before must; None:
            each column has its own.
    """
    some = x[:: -(-len(x) // SAMPLE)]
    stacked = np.concatenate([weight[:: -(-len(weight) // ROWS)] for weight in weights.values()])
    squares = mean_squares(x)
    if owners is not None:
        squares = (np.bincount(owners, squares) / np.bincount(owners))[owners].astype(np.float32)
    ones = np.ones(x.shape[1], np.float32)
    best, least = ones, WORTH * _error(kind, stacked, some, ones, recipe, calculator)
    for strength in STRENGTHS:
        factors = _powers(squares, strength)
        error = _error(kind, stacked, some, factors, recipe, calculator)
        if error < least:
            best, least = factors, error
    return best


def scaled(weights: dict[str, Array], factors: Array) -> dict[str, Array]:
    """Return matrices with their columns multiplied."""
    return {name: weight * factors for name, weight in weights.items()}


def divided_rows(matrix: QuantisedMatrix, factors: Array) -> QuantisedMatrix:
    """Return a matrix with row n divided by the power of two ``factors[n]``: other scales, the same codes."""
    down = np.reciprocal(factors, dtype=np.float32)[:, None]
    return replace(
        matrix,
        scales=bfloat16_bits(bfloat16_values(matrix.scales) * down),
        exact_weights=bfloat16_bits(bfloat16_values(matrix.exact_weights) * down),
    )


def _powers(squares: Array, strength: float) -> Array:
    """Powers of two near the inputs' root mean squares to a power, their middle being 1 and none beyond 2^6."""
    logs = 0.5 * strength * np.log2(np.maximum(squares, np.float32(1e-20)))
    steps = np.clip(np.rint(logs - np.median(logs)), -6, 6)
    powers: Array = np.exp2(steps).astype(np.float32)
    return powers


def _error(
    kind: Kind, weights: Array, x: Array, factors: Array, recipe: Recipe, calculator: Calculator
) -> float:
    inputs, columns = x / factors, weights * factors
    group = recipe.activation_group(kind)
    norms = np.einsum("nk,nk->k", columns, columns)
    exact = choose_exact(inputs, norms, group, recipe.exact_columns(kind, x.shape[1]))
    seen = rounded(inputs, group, exact)
    matrix = calculator.round(
        columns,
        bits=recipe.bits_of(kind),
        group=recipe.group_of(kind),
        exact=exact,
        clips=recipe.clips,
        weigh=mean_squares(seen),
    )
    off = calculator.multiply(seen, matrix.to_float32()) - calculator.multiply(x, weights)
    return float(np.sum(np.square(off), dtype=np.float64))
