from __future__ import annotations

import numpy as np
import pytest

from ernie_accel.quant.calculator import Array, Calculator


@pytest.fixture(scope="session")
def calculator() -> Calculator:
    return Calculator(2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def correlated(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """Inputs whose columns depend on each other, as those of a model do."""
    mixing = rng.normal(size=(cols // 3 + 1, cols))
    x = rng.normal(size=(rows, len(mixing))) @ mixing + 0.1 * rng.normal(size=(rows, cols))
    return x.astype(np.float32)
