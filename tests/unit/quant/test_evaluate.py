"""Figures of a comparison, against formulas written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from ernie_accel.errors import ArgumentError
from ernie_accel.quant import evaluate
from ernie_accel.quant.evaluate import compare, compare_all

Logits = npt.NDArray[np.float32]


class Table:
    """Says after each token what a row of a table says."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.rows = np.array(rows, np.float32)
        self.calls = 0

    def logits(self, token_ids: Sequence[int]) -> Logits:
        self.calls += 1
        found: Logits = self.rows[np.asarray(token_ids)]
        return found


def random_table(seed: int, vocab: int = 50) -> Table:
    return Table(np.random.default_rng(seed).normal(0, 3, (vocab, vocab)).tolist())


def test_figures_of_two_positions() -> None:
    reference = Table([[math.log(0.5), math.log(0.5)], [math.log(0.2), math.log(0.8)]])
    model = Table([[math.log(0.25), math.log(0.75)], [math.log(0.6), math.log(0.4)]])
    found = compare(reference, model, [[0, 1]])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(0.8 / 0.4)
    assert (found.tokens, found.predicted) == (2, 1)
    assert found.reference_perplexity == pytest.approx(2.0, rel=1e-6)
    assert found.perplexity == pytest.approx(1 / 0.75, rel=1e-6)
    assert found.perplexity_change == pytest.approx(1 / 1.5 - 1, rel=1e-6)
    assert found.kl == pytest.approx((first + second) / 2, rel=1e-6)
    assert found.kl_max == pytest.approx(second, rel=1e-6)
    assert found.kl_error == pytest.approx((second - first) / 2 / math.sqrt(2), rel=1e-6)
    # equal logits: the lowest id counts as the most probable one
    assert found.top1 == 0.0


def test_a_model_equals_itself() -> None:
    found = compare(random_table(0), random_table(0), [[1, 2, 3], [4]])
    assert (found.kl, found.kl_max, found.top1, found.perplexity_change) == (0.0, 0.0, 1.0, 0.0)
    assert (found.tokens, found.predicted, found.log_ratio_error) == (4, 2, 0.0)


def test_logits_may_be_shifted_by_anything() -> None:
    other = random_table(0)
    other.rows += 300.0
    found = compare(random_table(0), other, [[1, 2, 3, 4]])
    assert found.kl < 1e-9
    assert abs(found.perplexity_change) < 1e-4


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(3).integers(0, 50, 40).tolist()
    whole = compare(random_table(0), random_table(1), [ids])
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", 8 * 50 * 7)
    parts = compare(random_table(0), random_table(1), [ids])
    assert parts.kl == pytest.approx(whole.kl, rel=1e-12)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-12)
    assert (parts.predicted, parts.top1) == (whole.predicted, whole.top1)


def test_the_reference_is_asked_once_for_all_models() -> None:
    reference = random_table(0)
    found = compare_all(reference, {"a": random_table(1), "b": random_table(2)}, [[1, 2], [3, 4, 5]])
    assert reference.calls == 2
    assert found["a"].kl != found["b"].kl
    assert found["a"] == compare(random_table(0), random_table(1), [[1, 2], [3, 4, 5]])


def test_progress_counts_tokens() -> None:
    seen: list[tuple[str, int, int]] = []
    compare(random_table(0), random_table(1), [[1, 2], [3, 4, 5]], progress=lambda *step: seen.append(step))
    assert seen == [("evaluate", 2, 5), ("evaluate", 5, 5)]


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ArgumentError, match="two tokens"):
        compare(random_table(0), random_table(1), [[1], [2]])


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ArgumentError, match="one vocabulary"):
        compare(random_table(0), random_table(1, vocab=51), [[1, 2]])


def test_logits_that_are_no_numbers_are_refused() -> None:
    broken = random_table(1)
    broken.rows[2, 3] = np.nan
    with pytest.raises(ArgumentError, match="no finite numbers"):
        compare(random_table(0), broken, [[1, 2]])
