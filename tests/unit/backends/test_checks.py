from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ernie_accel.backends.base import LoadOptions, RunnerInfo, Select, Step
from ernie_accel.backends.checks import check_batch, check_context, check_plain_cpu, check_select
from ernie_accel.errors import ArgumentError, ContextLengthError, UnsupportedError

INFO = RunnerInfo(
    backend="mine",
    vocab_size=100,
    hidden_size=8,
    max_context=20,
    precision="fp32",
    kv_precision="fp32",
    page_size=1,
    max_step_tokens=12,
    max_sequences=4,
)


def check(*steps: Step, held: int = 0) -> list[Any]:
    return check_batch(steps, INFO, lambda seq: held)


@pytest.mark.parametrize(
    "ids", [[1, 2], (1, 2), np.array([1, 2], np.int32), np.array([1, 2], np.uint16), range(1, 3)]
)
def test_ids_of_every_integer_kind_become_int32(ids: Any) -> None:
    (found,) = check(Step(1, ids))
    assert found.dtype == np.int32
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize("ids", [[], [1.0], "12", [[1, 2]], [True], 3, [2**70], None])
def test_what_is_no_list_of_ids_is_refused(ids: Any) -> None:
    with pytest.raises(ArgumentError, match="token_ids="):
        check(Step(1, ids))


@pytest.mark.parametrize(
    ("steps", "held", "error", "says"),
    [
        ([Step(1, [100])], 0, ArgumentError, r"token id 100: must lie in \[0, 100\)"),
        ([Step(1, [5, -3])], 0, ArgumentError, "token id -3"),
        ([Step(1, [1]), Step(1, [2])], 0, ArgumentError, "twice"),
        ([Step(1, [1], 2)], 0, ArgumentError, "rows=2"),
        ([Step(1, [1], 1, "text")], 0, ArgumentError, "output='text'"),  # type: ignore[arg-type]
        ([Step(1, [1], 1, "hidden")], 0, UnsupportedError, "'mine' lacks"),
        ([Step(1, [1] * 7), Step(2, [1] * 6)], 0, ArgumentError, "step of 13 tokens: at most 12"),
        ([Step(1, [1] * 6)], 15, ContextLengthError, "15 tokens and 6 more: the context holds 20"),
    ],
)
def test_a_wrong_step_is_refused(steps: list[Step], held: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check(*steps, held=held)


def test_what_just_fits_is_taken() -> None:
    assert [len(ids) for ids in check(Step(1, [0] * 5, 5), Step(2, [99] * 5, 0), held=15)] == [5, 5]


def test_context() -> None:
    assert check_context(LoadOptions(), 50) == 50
    assert check_context(LoadOptions(max_context=50), 50) == 50
    for wrong in (51, 0, -1):
        with pytest.raises(ArgumentError, match=r"must lie in \[1, 50\]"):
            check_context(LoadOptions(max_context=wrong), 50)


def test_plain_cpu_takes_what_means_nothing_more() -> None:
    check_plain_cpu("mine", LoadOptions(device="cpu", tensor_parallel="auto", max_batch=1))


@pytest.mark.parametrize(
    "name",
    ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_nothing_can_be_drawn_with_are_refused(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}={value}: must be a finite number$"):
        check_select(Select(**{name: value}), 100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("select", "wanted"),
    [
        (Select(top_k=-1), "top_k=-1: must be at least 0"),
        (Select(seed=-1), r"seed=-1: must be from 0 to 2\*\*64 - 1"),
        (Select(seed=1 << 64), r"seed=\d+: must be from 0 to"),
    ],
)
def test_whole_numbers_out_of_range_are_refused(select: Select, wanted: str) -> None:
    with pytest.raises(ArgumentError, match=wanted):
        check_select(select, 100)
