from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from ernie_accel.checkpoint.quantised import Bits, bfloat16_bits, bfloat16_values
from ernie_accel.errors import CapacityError
from ernie_accel.quant.activations import rounded
from ernie_accel.quant.calculator import Array, Calculator
from tests.unit.quant.conftest import correlated

NONE = np.zeros(0, np.int32)


def cost(off: Array, gram: Array) -> float:
    wide = off.astype(np.float64)
    return float(np.einsum("nk,kj,nj->", wide, gram.astype(np.float64), wide))


def test_products(calculator: Calculator, rng: np.random.Generator) -> None:
    x, y = correlated(rng, 1500, 50), correlated(rng, 1500, 31)
    w = rng.normal(size=(37, 50)).astype(np.float32)
    np.testing.assert_allclose(calculator.multiply(x, w), x @ w.T, atol=1e-3)
    gram = calculator.gram(x)
    np.testing.assert_allclose(np.tril(gram), np.tril(x.T @ x), atol=0.2)
    np.testing.assert_allclose(calculator.cross(x, y), x.T @ y, atol=0.2)


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (6, 64), (8, 64)])
@pytest.mark.parametrize("cols", [24, 200, 256])
def test_products_with_codes(
    calculator: Calculator, rng: np.random.Generator, bits: int, group: int, cols: int
) -> None:
    x = correlated(rng, 70, cols)
    weights = rng.normal(size=(37, cols)).astype(np.float32)
    exact = np.array([3, cols - 2], np.int32)
    matrix = calculator.round(weights, bits=cast(Bits, bits), group=group, exact=exact, clips=(1.0,))
    wanted = rounded(x, 32, exact) @ matrix.to_float32().T
    np.testing.assert_allclose(calculator.multiply_codes(x, matrix, 32), wanted, atol=1e-3)


def test_factor_and_solve(calculator: Calculator, rng: np.random.Generator) -> None:
    gram = calculator.gram(correlated(rng, 200, 45))
    reach = calculator.factor(gram, 0.01)
    assert not np.triu(reach, 1).any()
    wanted = gram + 0.01 * np.diag(gram).mean() * np.eye(45)
    np.testing.assert_allclose(reach.T @ reach, wanted, rtol=1e-4, atol=1e-2)
    values = rng.normal(size=(5, 45)).astype(np.float32)
    np.testing.assert_allclose(calculator.solve(reach, values) @ wanted, values, atol=1e-3)


def test_factor_adds_what_a_singular_matrix_needs(calculator: Calculator) -> None:
    reach = calculator.factor(np.ones((40, 40), np.float32), 0.0)
    assert np.isfinite(reach).all()
    assert (np.diag(reach) > 0).all()
    with pytest.raises(CapacityError, match="no numbers"):
        calculator.factor(np.full((40, 40), np.nan, np.float32), 0.01)


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (6, 64), (8, 64)])
@pytest.mark.parametrize("cols", [24, 48, 200])
def test_feedback_beats_nearest(
    calculator: Calculator, rng: np.random.Generator, bits: int, group: int, cols: int
) -> None:
    x = correlated(rng, 400, cols)
    weights = rng.normal(size=(21, cols)).astype(np.float32)
    gram = calculator.gram(x)
    exact = np.array([1, cols - 1], np.int32)
    width = cast(Bits, bits)
    near = calculator.round(weights, bits=width, group=group, exact=exact, clips=(1.0,))
    fed = calculator.round(
        weights, bits=width, group=group, exact=exact, clips=(1.0,), reach=calculator.factor(gram, 0.01)
    )
    assert cost(fed.to_float32() - weights, gram) < 0.6 * cost(near.to_float32() - weights, gram)
    for matrix in (near, fed):
        assert not matrix.codes[:, exact].any()
        assert matrix.exact.tolist() == exact.tolist()
        assert (matrix.subs is not None) == (bits == 4)
    np.testing.assert_array_equal(near.exact_weights, bfloat16_bits(weights[:, exact]))


def test_nearest_takes_the_nearest_code(calculator: Calculator, rng: np.random.Generator) -> None:
    weights = rng.normal(size=(18, 100)).astype(np.float32)
    matrix = calculator.round(weights, bits=8, group=64, exact=NONE, clips=(1.0,))
    steps = np.repeat(bfloat16_values(matrix.scales), 64, axis=1)[:, :100]
    clipped = np.clip(weights / steps, -127, 127)
    np.testing.assert_array_equal(matrix.codes, np.rint(clipped))
    assert np.abs(matrix.to_float32() - weights).max() < np.abs(weights).max() / 127


def test_more_clips_are_never_worse(calculator: Calculator, rng: np.random.Generator) -> None:
    weights = rng.standard_t(4, size=(33, 256)).astype(np.float32)
    errors = []
    for clips in ((1.0,), (1.07, 1.0, 0.93, 0.86, 0.8)):
        matrix = calculator.round(weights, bits=4, group=128, exact=NONE, clips=clips)
        errors.append(np.square(matrix.to_float32() - weights).sum(axis=1))
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert errors[1].sum() < 0.99 * errors[0].sum()


def test_columns_that_count_more_are_kept_better(calculator: Calculator, rng: np.random.Generator) -> None:
    weights = rng.standard_t(3, size=(64, 128)).astype(np.float32)
    weigh = np.where(np.arange(128) < 64, 100, 1).astype(np.float32)
    clips = (1.0, 0.8, 0.6, 0.5)
    plain = calculator.round(weights, bits=4, group=128, exact=NONE, clips=clips)
    weighed = calculator.round(weights, bits=4, group=128, exact=NONE, clips=clips, weigh=weigh)
    first = [np.square(m.to_float32() - weights)[:, :64].sum() for m in (plain, weighed)]
    assert first[1] < first[0]


def test_zeros_stay_zeros(calculator: Calculator) -> None:
    for bits in (4, 6, 8):
        matrix = calculator.round(
            np.zeros((3, 40), np.float32), bits=bits, group=64, exact=NONE, clips=(1.0,)
        )
        assert not matrix.to_float32().any()


def test_threads_do_not_change_a_bit(rng: np.random.Generator) -> None:
    x, weights = correlated(rng, 700, 144), rng.normal(size=(100, 144)).astype(np.float32)
    results = []
    for threads in (1, 2, 3):
        calculator = Calculator(threads)
        gram = calculator.gram(x)
        reach = calculator.factor(gram, 0.01)
        matrix = calculator.round(weights, bits=4, group=128, exact=NONE, clips=(1.0, 0.9), reach=reach)
        assert matrix.subs is not None
        products = (calculator.multiply(x, weights), calculator.multiply_codes(x, matrix, 64))
        parts = (*products, gram, reach, calculator.solve(reach, weights))
        results.append(b"".join(a.tobytes() for a in (*parts, matrix.codes, matrix.scales, matrix.subs)))
    assert results[0] == results[1] == results[2]
