from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_accel.backends.base import Select
from ernie_accel.engine.sampling import philox4x32, select_rows, uniform, weights
from ernie_accel.errors import ArgumentError, BackendError

Rows = npt.NDArray[np.float32]


def rows(*values: list[float]) -> Rows:
    return np.array(values, np.float32)


def int32(values: list[int]) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def mask_of(allowed: list[int], vocab_size: int) -> npt.NDArray[np.uint32]:
    words = np.zeros((vocab_size + 31) // 32, np.uint32)
    for i in allowed:
        words[i // 32] |= np.uint32(1 << (i % 32))
    return words


def one(row: list[float], select: Select, position: int = 7) -> int:
    return select_rows(rows(row), select, position)[0][0]


def slow_token(row: list[float], select: Select, position: int) -> int:
    """The definition once more, with Python numbers and loops."""
    f = np.float32
    logits = [f(x) for x in row]
    if select.seen is not None:
        for i, n in zip(
            select.seen, select.counts if select.counts is not None else [0] * len(row), strict=False
        ):
            r = f(select.repetition_penalty)
            logits[i] = logits[i] / r if logits[i] > 0 else logits[i] * r
            if n > 0:
                logits[i] -= f(select.frequency_penalty) * f(n) + f(select.presence_penalty)
    ids = [
        i
        for i in range(len(row))
        if (not select.vocab_limit or i < select.vocab_limit)
        and (select.mask is None or int(select.mask[i // 32]) >> (i % 32) & 1)
    ]
    if select.temperature == 0:
        return min(ids, key=lambda i: (-float(logits[i]), i))
    order = sorted(ids, key=lambda i: (-float(logits[i]), i))[: select.top_k or None]
    top = float(logits[order[0]])
    w = [round(2**40 * math.exp((float(logits[i]) - top) / select.temperature)) for i in order]
    kept = max(w[0], sum(weight for weight in w if weight >= select.min_p * 2**40))
    if select.top_p < 1:
        running = 0
        for weight in w:
            running += weight
            if running >= select.top_p * sum(w):
                break
        kept = min(kept, running)
    threshold, running = uniform(select.seed, position) * kept, 0
    for i, weight in zip(order, w, strict=True):
        running += weight
        if running > threshold:
            return i
    return order[-1]


def test_philox_known_answers() -> None:
    # "kat_vectors" of the Random123 distribution, philox4x32 with 10 rounds
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox4x32(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_is_the_top_53_bits_and_uses_all_of_seed_and_position() -> None:
    assert uniform(0, 0) == ((0x6627E8D5 << 32 | 0xE169C58D) >> 11) / 2**53
    keys = [(0, 0), (1, 0), (0, 1), (1 << 32, 0), (0, 1 << 32), (2**64 - 1, 5)]
    draws = [uniform(seed, position) for seed, position in keys]
    assert len(set(draws)) == len(keys)
    assert all(0 <= u < 1 for u in draws)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert one([1, 3, 2, 3], Select()) == 1


@pytest.mark.parametrize("temperature", [1e-31, 1e-300, 5e-324])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    assert one([1, 3, 2, 3], Select(temperature=temperature)) == 1


def test_a_small_temperature_draws_the_largest_logit() -> None:
    assert one([1, 3, 2, 2.5], Select(temperature=1e-29)) == 1


def test_weights_are_the_exponentials() -> None:
    logits = np.random.default_rng(2).normal(size=1000).astype(np.float32) * 5
    exact = [2.0**40 * math.exp((float(x) - float(logits.max())) / 0.7) for x in logits]
    np.testing.assert_allclose(weights(logits, 0.7), exact, rtol=0, atol=0.51)
    assert weights(rows([3, 3, -90])[0], 1.0).tolist() == [2**40, 2**40, 0]
    assert weights(rows([3e38, -3e38])[0], 1e-30).tolist() == [2**40, 0]


def test_draws_follow_the_softmax() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.tile(np.log(probabilities).astype(np.float32), (4000, 1))
    ids, _ = select_rows(logits, Select(temperature=1.0, seed=3), 0)
    counts = np.bincount(ids, minlength=4)
    chi2 = float(((counts - 4000 * probabilities) ** 2 / (4000 * probabilities)).sum())
    assert chi2 < 16.3  # 0.1 % of fair samples lie above, and the seed is fixed


def test_temperature_flattens() -> None:
    logits = np.tile(np.log([0.9, 0.1]).astype(np.float32), (2000, 1))
    cold, _ = select_rows(logits, Select(temperature=0.5, seed=1), 0)
    hot, _ = select_rows(logits, Select(temperature=2.0, seed=1), 0)
    assert sum(cold) / 2000 == pytest.approx(1 / 82, abs=0.01)
    assert sum(hot) / 2000 == pytest.approx(0.25, abs=0.03)


def test_row_i_draws_with_its_own_position() -> None:
    logits = np.zeros((5, 100), np.float32)
    select = Select(temperature=1.0, seed=11)
    together, _ = select_rows(logits, select, 40)
    alone = tuple(select_rows(logits[:1], select, 40 + i)[0][0] for i in range(5))
    assert together == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize(
    ("select", "kept"),
    [
        (Select(top_k=2), {0, 1}),
        (Select(top_k=0), {0, 1, 2, 3, 4}),
        (Select(top_k=99), {0, 1, 2, 3, 4}),
        (Select(top_p=0.39), {0}),
        (Select(top_p=0.41), {0, 1}),
        (Select(top_p=1e-9), {0}),
        (Select(min_p=0.49), {0, 1, 2}),
        (Select(min_p=0.51), {0}),
        (Select(min_p=1.0), {0}),
        (Select(top_k=4, top_p=0.75), {0, 1, 2}),  # the share is of what top-k left: 0.8 / 0.95
        (Select(vocab_limit=3), {0, 1, 2}),
        (Select(mask=mask_of([1, 4], 5)), {1, 4}),
        (Select(mask=mask_of([1, 4], 5), vocab_limit=4), {1}),
        (Select(mask=mask_of([2, 3, 4], 5), top_k=2), {2, 3}),
    ],
)
def test_what_is_kept(select: Select, kept: set[int]) -> None:
    logits = np.tile(np.log([0.4, 0.2, 0.2, 0.15, 0.05]), (600, 1)).astype(np.float32)
    ids, _ = select_rows(logits, replace(select, temperature=1.0, seed=2), 0)
    assert set(ids) == kept


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    select = Select(seen=int32([0, 2]), repetition_penalty=2.0)
    assert one([4, 3, -9, -9], select) == 1
    assert one([-1, -9, -9, -1.5], select) == 3
    assert one([4, 1.9, -9, -9], select) == 0


def test_presence_and_frequency_count_the_output_only() -> None:
    seen, counts = int32([0, 1]), int32([0, 3])
    assert one([1, 2, 0], Select(seen=seen, counts=counts, presence_penalty=1.5)) == 0
    assert one([1, 2, 0], Select(seen=seen, counts=counts, presence_penalty=0.5)) == 1
    assert one([1, 2, 0], Select(seen=seen, counts=counts, frequency_penalty=0.4)) == 0
    assert one([1, 2, 0], Select(seen=seen, counts=counts, frequency_penalty=-1.0, presence_penalty=1.0)) == 1
    assert (
        one([1, 0, 0.9], Select(seen=seen, counts=counts, presence_penalty=5.0, frequency_penalty=5.0)) == 0
    )


def test_the_logits_given_stay_as_they_are() -> None:
    logits = rows([4, 3, 2])
    before = logits.copy()
    select_rows(logits, Select(seen=int32([0]), repetition_penalty=9.0, vocab_limit=2, temperature=1.0), 0)
    np.testing.assert_array_equal(logits, before)


def test_logprobs_are_of_the_raw_logits() -> None:
    raw = np.log([0.5, 0.25, 0.25])
    select = Select(temperature=0.3, logprobs=2, vocab_limit=1, seen=int32([0]), repetition_penalty=3.0)
    ids, logprobs = select_rows(rows(raw.tolist()), select, 0)
    assert ids == (0,)
    assert logprobs is not None
    assert logprobs[0].token_id == 0
    assert math.exp(logprobs[0].logprob) == pytest.approx(0.5, rel=1e-6)
    assert [i for i, _ in logprobs[0].top] == [0, 1]
    assert math.exp(logprobs[0].top[1][1]) == pytest.approx(0.25, rel=1e-6)


def test_logprobs_asked_for() -> None:
    assert select_rows(rows([1, 2]), Select(), 0)[1] is None
    none, many = (select_rows(rows([1, 2]), Select(logprobs=n), 0)[1] for n in (0, 2))
    assert none is not None
    assert none[0].top == ()
    assert many is not None
    assert len(many[0].top) == 2


@pytest.mark.parametrize(("allowed", "limit"), [([], 0), ([2], 2), ([40, 41], 40), ([32, 69], 32)])
def test_everything_masked_is_an_argument_error(allowed: list[int], limit: int) -> None:
    with pytest.raises(ArgumentError, match="masked out"):
        one([0] * 70, Select(mask=mask_of(allowed, 70), vocab_limit=limit))
    mask = mask_of([*allowed, 1], 70)
    assert one([0] * 70, Select(mask=mask, vocab_limit=limit)) == 1
    assert one([0] * 70, Select(mask=mask_of([69], 70))) == 69


def test_nothing_but_minus_infinity_is_reported() -> None:
    with pytest.raises(BackendError, match="-inf"):
        one([-math.inf, -math.inf, 1], Select(vocab_limit=2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_out_of_range_are_reported(bad: float, temperature: float) -> None:
    with pytest.raises(BackendError, match="logits hold"):
        one([1, bad, 3], Select(temperature=temperature))


def test_shapes_are_checked() -> None:
    with pytest.raises(ArgumentError, match="seen"):
        one([1, 2], Select(seen=int32([2])))
    with pytest.raises(ArgumentError, match="counts"):
        one([1, 2], Select(seen=int32([1]), counts=int32([1, 2])))
    with pytest.raises(ArgumentError, match="mask"):
        one([1, 2], Select(mask=np.zeros(2, np.uint32)))
    with pytest.raises(ArgumentError, match="logprobs=3"):
        one([1, 2], Select(logprobs=3))
    with pytest.raises(ArgumentError, match="vocab_limit=3"):
        one([1, 2], Select(vocab_limit=3))


@st.composite
def selects(draw: st.DrawFn) -> tuple[list[float], Select]:
    size = draw(st.integers(1, 40))
    number = st.floats(-20, 20, width=32)
    row = draw(st.lists(number | st.sampled_from([0.0, 1.0, -1.0]), min_size=size, max_size=size))
    seen = sorted(draw(st.sets(st.integers(0, size - 1))))
    allowed = draw(st.none() | st.sets(st.integers(0, size - 1), min_size=1))
    select = Select(
        temperature=draw(st.sampled_from([0.0, 0.25, 0.7, 1.0, 3.0])),
        top_k=draw(st.integers(0, size + 2)),
        top_p=draw(st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])),
        repetition_penalty=draw(st.sampled_from([0.7, 1.0, 1.3])),
        presence_penalty=draw(st.sampled_from([-0.5, 0.0, 0.9])),
        frequency_penalty=draw(st.sampled_from([-0.1, 0.0, 0.3])),
        seen=np.array(seen, np.int32),
        counts=np.array([draw(st.integers(0, 3)) for _ in seen], np.int32),
        vocab_limit=draw(st.integers(0, size)) if allowed is None else 0,
        mask=None if allowed is None else mask_of(sorted(allowed), size),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
    return row, select


@settings(max_examples=300, deadline=None)
@given(selects(), st.integers(0, 2**40))
def test_against_the_definition_in_plain_python(case: tuple[list[float], Select], position: int) -> None:
    row, select = case
    assert one(row, select, position) == slow_token(row, select, position)
