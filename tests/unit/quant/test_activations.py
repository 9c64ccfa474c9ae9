from __future__ import annotations

import numpy as np

from ernie_accel.quant.activations import choose_exact, mean_squares, rounded

NONE = np.zeros(0, np.int32)


def test_rounded_is_int8_by_rows_and_groups(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 100)).astype(np.float32)
    y = rounded(x, 64, NONE)
    for row in range(5):
        for begin, end in ((0, 64), (64, 100)):
            scale = np.abs(x[row, begin:end]).max() / 127
            codes = y[row, begin:end] / scale
            np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
            assert np.abs(y[row, begin:end] - x[row, begin:end]).max() <= 0.5001 * scale


def test_exact_columns_stay_and_do_not_widen_scales(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 64)).astype(np.float32)
    x[:, 3] *= 1000
    y = rounded(x, 64, np.array([3], np.int32))
    np.testing.assert_array_equal(y[:, 3], x[:, 3])
    assert np.abs(y - x).max() < 0.05


def test_zero_rows_stay_zero() -> None:
    assert not rounded(np.zeros((2, 48), np.float32), 32, NONE).any()


def test_outlier_columns_are_chosen(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 200)).astype(np.float32)
    x[:, [5, 6, 130, 199]] *= 30
    assert choose_exact(x, np.ones(200, np.float32), 64, 4).tolist() == [5, 6, 130, 199]


def test_groups_with_heavy_weights_come_first(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 128)).astype(np.float32)
    x[:, [5, 100]] *= 30
    norms = np.where(np.arange(128) < 64, 1e-5, 1).astype(np.float32)
    chosen = choose_exact(x, norms, 64, 2).tolist()
    assert 100 in chosen
    assert 5 not in chosen


def test_the_number_of_exact_columns_is_even_even_where_all_is_zero() -> None:
    assert choose_exact(np.zeros((4, 5), np.float32), np.ones(5, np.float32), 16, 8).tolist() == [0, 1, 2, 3]
    assert len(choose_exact(np.zeros((4, 40), np.float32), np.ones(40, np.float32), 32, 6)) == 6


def test_mean_squares() -> None:
    np.testing.assert_allclose(mean_squares(np.array([[1, 2], [3, 4]], np.float32)), [5, 10])
