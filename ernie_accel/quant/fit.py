"""One step of quantization: the matrices that read one input, fitted to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ernie_accel.checkpoint.quantised import QuantisedMatrix
from ernie_accel.errors import CheckpointError
from ernie_accel.quant.activations import choose_exact, mean_squares, rounded
from ernie_accel.quant.calculator import Array, Calculator
from ernie_accel.quant.folding import choose_factors, divided_rows, scaled
from ernie_accel.quant.recipe import Kind, Recipe
from ernie_accel.quant.streams import Streams

__all__ = ["Fitter", "column_norms"]

Columns = npt.NDArray[np.int32]
NO_COLUMNS: Columns = np.zeros(0, np.int32)

ROWS_AT_ONCE = 8192
"""Rows of a matrix that are fitted together: a vocabulary head has a hundred thousand."""
SAMPLE = 512
"""Rows of activations on which errors are measured."""
ROWS_SAMPLE = 2048
"""... and of a matrix, which says nothing new beyond that."""
NEAREST_SAMPLE = 256
"""... and of a matrix that is rounded to nearest, whose rows all fare alike."""
EXACT_SAMPLE = 4096
"""Rows of activations from which exact columns are chosen."""


def column_norms(weights: dict[str, Array]) -> Array:
    """Return the sum of the squared weights of each column, over several matrices of one width."""
    total: Array = np.sum([np.einsum("nk,nk->k", w, w) for w in weights.values()], axis=0, dtype=np.float32)
    return total


@dataclass
class Fitter:
    """Quantises matrices by a recipe and collects them; what is in ``given`` was finished before and is only passed.

    Attributes:
        matrices: Results by name.
        tensors: Norms with factors folded in, by name.
        errors: Errors by name, as ``LayerResult.errors``.
    """

    recipe: Recipe
    calculator: Calculator
    given: Mapping[str, QuantisedMatrix] = field(default_factory=dict)
    given_tensors: Mapping[str, Array] = field(default_factory=dict)
    matrices: dict[str, QuantisedMatrix] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def smooth_norm(
        self, kind: Kind, weights: dict[str, Array], x: Streams, name: str, gains: Array
    ) -> tuple[dict[str, Array], Streams]:
        """Fold factors into the norm that x comes from; return weights and inputs as they then are.

        ``name`` and ``gains`` are the norm's; nothing but ``weights`` may read it.
        """
        if not self.recipe.fold:
            return weights, x
        if self.given:
            divided = self.given_tensors.get(name, gains)
            factors = np.ones_like(gains)
            np.divide(gains, divided, out=factors, where=divided != 0)
        else:
            factors = choose_factors(kind, weights, x.ours, self.recipe, self.calculator)
        if (factors == 1).all():
            return weights, x
        self.tensors[name] = gains / factors
        return scaled(weights, factors), x.map(lambda a: a / factors)

    def smooth_rows(
        self,
        kind: Kind,
        weights: dict[str, Array],
        x: Streams,
        before: str,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> tuple[dict[str, Array], Streams]:
        """Fold factors into the rows of the quantised matrix ``before``; return weights and inputs as they then are.

        ``rows`` says which row each column of x is made of; None: its own.
        """
        if not self.recipe.fold or before in self.given:  # in what is given they are folded already
            return weights, x
        factors = choose_factors(kind, weights, x.ours, self.recipe, self.calculator, rows)
        if (factors == 1).all():
            return weights, x
        of_rows = factors
        if rows is not None:
            of_rows = np.ones(rows.max() + 1, np.float32)
            of_rows[rows] = factors
        self.matrices[before] = divided_rows(self.matrices[before], of_rows)
        return scaled(weights, factors), x.map(lambda a: a / factors)

    def through(
        self, kind: Kind, weights: dict[str, Array], x: Streams, exact: Columns | None = None
    ) -> list[Streams]:
        """Quantise matrices [rows, K] that read ``x`` [T, K] and return what they make of it, each [T, rows].

        ``exact`` names the exact columns; None chooses them.
        """
        self.fit(kind, weights, x, exact)
        return self.passed(kind, weights, x)

    def passed(self, kind: Kind, weights: dict[str, Array], x: Streams) -> list[Streams]:
        """Return what quantised matrices make of ``x``, and the checkpoint's of the ideal one."""
        results, group = [], self.recipe.activation_group(kind)
        for name, weight in weights.items():
            ours = self.calculator.multiply_codes(x.ours, self.matrices[name], group)
            ideal = ours if x.ideal is x.ours else self.calculator.multiply(x.ideal, weight)
            results.append(Streams(ours, ideal))
        return results

    def fit(self, kind: Kind, weights: dict[str, Array], x: Streams, exact: Columns | None = None) -> None:
        """Quantise matrices that read ``x``."""
        if all(name in self.given for name in weights):
            self.matrices.update({name: self.given[name] for name in weights})
            return
        _check_finite(weights)
        recipe = self.recipe
        if exact is None:
            exact = self.exact_columns(kind, weights, x.ours)
        seen = self._seen(kind, x.ours, exact)
        fit = _Fit(self.calculator, recipe, kind, exact, seen, x.ideal, sum(map(len, weights.values())))
        for name, weight in weights.items():
            parts = [fit(weight[at : at + ROWS_AT_ONCE]) for at in range(0, len(weight), ROWS_AT_ONCE)]
            self.matrices[name] = _joined(parts)
            self.errors[name] = self._error(weight, self.matrices[name], x.ours, seen)

    def nearest(
        self,
        kind: Kind,
        weights: dict[str, Array],
        *,
        exact: Columns = NO_COLUMNS,
        weigh: Array | None = None,
    ) -> None:
        """Quantise matrices to nearest, without data; ``weigh`` [K] says how much each column counts."""
        for name, weight in weights.items():
            if name in self.given:
                self.matrices[name] = self.given[name]
                continue
            _check_finite({name: weight})
            matrix = self.calculator.round(
                weight,
                bits=self.recipe.bits_of(kind),
                group=self.recipe.group_of(kind),
                exact=exact,
                clips=self.recipe.clips,
                weigh=weigh,
            )
            self.matrices[name] = matrix
            skip = -(-len(weight) // NEAREST_SAMPLE)
            some = weight[::skip]
            self.errors[name] = _share(_every(matrix, skip).to_float32() - some, some)

    def exact_columns(self, kind: Kind, weights: dict[str, Array], x: Array) -> Columns:
        """Choose the exact columns of matrices that read x [T, K]."""
        count = self.recipe.exact_columns(kind, x.shape[1])
        step = -(-len(x) // EXACT_SAMPLE)
        return choose_exact(x[::step], column_norms(weights), self.recipe.activation_group(kind), count)

    def _seen(self, kind: Kind, x: Array, exact: Columns) -> Array:
        return rounded(x, self.recipe.activation_group(kind), exact)

    def _error(self, weight: Array, matrix: QuantisedMatrix, x: Array, seen: Array) -> float:
        step, skip = -(-len(x) // SAMPLE), -(-len(weight) // ROWS_SAMPLE)
        wanted = self.calculator.multiply(x[::step], weight[::skip])
        got = self.calculator.multiply(seen[::step], _every(matrix, skip).to_float32())
        got -= wanted
        return _share(got, wanted)


class _Fit:
    """What the matrices that read one input have in common; ``rows`` is how many rows they have together."""

    def __init__(
        self,
        calculator: Calculator,
        recipe: Recipe,
        kind: Kind,
        exact: Columns,
        seen: Array,
        ideal: Array,
        rows: int,
    ) -> None:
        self._calculator, self._recipe, self._kind, self._exact = calculator, recipe, kind, exact
        self._reach: Array | None = None
        self._weigh: Array | None = None
        self._follow: _Follow | None = None
        if not recipe.feedback:
            self._weigh = mean_squares(seen)
            return
        self._reach = calculator.factor(calculator.gram(seen), recipe.damping)
        if recipe.follow > 0:
            self._follow = _Follow(calculator, recipe.follow, self._reach, seen, ideal, rows)

    def __call__(self, weights: Array) -> QuantisedMatrix:
        if self._follow is not None:
            weights = self._follow(weights)
        return self._calculator.round(
            weights,
            bits=self._recipe.bits_of(self._kind),
            group=self._recipe.group_of(self._kind),
            exact=self._exact,
            clips=self._recipe.clips,
            reach=self._reach,
            weigh=self._weigh,
        )


class _Follow:
    """Weights that give most nearly, of the inputs as they are, what the checkpoint's give of ideal ones.

    They are W + W (ideal - seen)^T seen H^-1 (Li et al. 2025, "GPTAQ"). What stands behind the second W is [K, K] and
    serves all matrices; of matrices with few rows it is cheaper to go on from W (ideal - seen)^T, [rows, T].
    """

    def __init__(
        self, calculator: Calculator, share: float, reach: Array, seen: Array, ideal: Array, rows: int
    ) -> None:
        tokens, cols = seen.shape
        self._calculator, self._reach = calculator, reach
        self._share = np.float32(share * tokens / (tokens + cols))
        self._missing: Array | None = None
        off = ideal - seen
        if 2 * rows * tokens >= cols * (tokens + cols):  # multiplications of both ways
            self._missing = np.ascontiguousarray(calculator.solve(reach, calculator.cross(off, seen)).T)
        else:
            self._off, self._seen = off, seen

    def __call__(self, weights: Array) -> Array:
        calculator = self._calculator
        if self._missing is not None:
            moved = calculator.multiply(weights, self._missing)
        else:
            missing = calculator.multiply(self._off, weights)  # of the results, [T, rows]
            moved = calculator.solve(self._reach, calculator.cross(missing, self._seen))
        moved *= self._share
        moved += weights
        return moved


def _joined(parts: list[QuantisedMatrix]) -> QuantisedMatrix:
    if len(parts) == 1:
        return parts[0]
    subs = [part.subs for part in parts if part.subs is not None]
    return QuantisedMatrix(
        bits=parts[0].bits,
        group=parts[0].group,
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        subs=np.concatenate(subs) if subs else None,
        exact=parts[0].exact,
        exact_weights=np.concatenate([part.exact_weights for part in parts]),
    )


def _every(matrix: QuantisedMatrix, step: int) -> QuantisedMatrix:
    """Return every so many rows of a matrix."""
    return replace(
        matrix,
        codes=matrix.codes[::step],
        scales=matrix.scales[::step],
        subs=None if matrix.subs is None else matrix.subs[::step],
        exact_weights=matrix.exact_weights[::step],
    )


def _share(off: Array, whole: Array) -> float:
    total = float(np.sum(np.square(whole), dtype=np.float64))
    return float(np.sqrt(np.sum(np.square(off), dtype=np.float64) / total)) if total > 0 else 0.0


def _check_finite(weights: dict[str, Array]) -> None:
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise CheckpointError(
                f"{name} holds values that are no finite numbers; it cannot be quantised, load it with precision='fp32'"
            )
