from __future__ import annotations

import numpy as np
import pytest

from ernie_accel.quant import Recipe
from ernie_accel.quant.calculator import Array, Calculator
from ernie_accel.quant.fit import Fitter
from ernie_accel.quant.folding import choose_factors, divided_rows, scaled
from ernie_accel.quant.streams import Streams

INT8 = Recipe.for_precision("int8")


def uneven(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """Inputs whose columns differ by a factor of hundreds, in every group."""
    return (rng.normal(size=(rows, cols)) * np.exp(rng.normal(size=cols) * 2)).astype(np.float32)


def test_factors_are_powers_of_two_and_lower_the_error(
    calculator: Calculator, rng: np.random.Generator
) -> None:
    x, w = uneven(rng, 300, 128), rng.normal(size=(40, 128)).astype(np.float32)
    factors = choose_factors("qkv", {"w": w}, x, INT8, calculator)
    mantissas, _ = np.frexp(factors)
    assert (mantissas == 0.5).all()
    assert len(set(factors.tolist())) > 2
    errors = []
    for values, inputs in ((w, x), (scaled({"w": w}, factors)["w"], x / factors)):
        fitter = Fitter(INT8, calculator)
        fitter.fit("qkv", {"w": values}, Streams(inputs, inputs))
        errors.append(fitter.errors["w"])
    assert errors[1] < 0.9 * errors[0]


def test_even_inputs_are_left_alone(calculator: Calculator, rng: np.random.Generator) -> None:
    x, w = rng.normal(size=(300, 64)).astype(np.float32), rng.normal(size=(40, 64)).astype(np.float32)
    assert (choose_factors("o", {"w": w}, x, INT8, calculator) == 1).all()


def test_columns_of_one_owner_have_one_factor(calculator: Calculator, rng: np.random.Generator) -> None:
    owners = np.arange(128) % 32
    x = uneven(rng, 300, 32)[:, owners] * rng.normal(size=(300, 128)).astype(np.float32)
    w = rng.normal(size=(40, 128)).astype(np.float32)
    factors = choose_factors("o", {"w": w}, x, INT8, calculator, owners)
    assert len(set(factors.tolist())) > 1
    np.testing.assert_array_equal(factors, factors[:32][owners])


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rows_divided_by_powers_of_two_keep_their_codes(
    calculator: Calculator, rng: np.random.Generator, precision: str
) -> None:
    bits = 8 if precision == "int8" else 4
    w = rng.normal(size=(20, 96)).astype(np.float32)
    exact = np.array([2, 50], np.int32)
    matrix = calculator.round(w, bits=bits, group=32, exact=exact, clips=(1.0,))  # type: ignore[arg-type]
    factors = np.exp2(rng.integers(-5, 6, size=20)).astype(np.float32)
    divided = divided_rows(matrix, factors)
    np.testing.assert_array_equal(divided.codes, matrix.codes)
    np.testing.assert_array_equal(divided.to_float32() * factors[:, None], matrix.to_float32())


def test_a_folded_norm_keeps_the_function(calculator: Calculator, rng: np.random.Generator) -> None:
    x, w = uneven(rng, 300, 128), rng.normal(size=(40, 128)).astype(np.float32)
    gains = rng.normal(size=128).astype(np.float32)
    gains[7] = 0
    fitter = Fitter(INT8, calculator)
    weights, inputs = fitter.smooth_norm("qkv", {"w": w}, Streams(x, x.copy()), "norm", gains)
    assert not (inputs.ours == x).all()
    np.testing.assert_array_equal(calculator.multiply(inputs.ours, weights["w"]), calculator.multiply(x, w))
    factors = x[0] / inputs.ours[0]
    np.testing.assert_array_equal(fitter.tensors["norm"] * factors, gains)
