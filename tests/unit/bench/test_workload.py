from __future__ import annotations

from typing import Any

import pytest

from ernie_accel.bench.workload import LONG_CONTEXT, Workload, prompts, workloads
from ernie_accel.errors import ArgumentError


def test_prefill_counts_the_prompt() -> None:
    workload = Workload(measures="prefill", context=8)
    assert (workload.name, workload.tokens, workload.rate(4.0)) == ("prefill-8", 8, 2.0)


def test_decode_counts_all_sequences() -> None:
    workload = Workload(measures="decode", context=32, batch=4, steps=10)
    assert (workload.name, workload.tokens, workload.rate(2.0)) == ("decode-32x4", 40, 20.0)
    assert Workload(measures="decode", context=32).name == "decode-32"


def test_request_counts_new_tokens_and_tells_its_time() -> None:
    (workload,) = workloads([], [], [1, 16], request=[512])
    assert (workload.name, workload.batch, workload.tokens) == ("request-512-64", 1, 64)
    assert workload.seconds(workload.rate(1.5)) == pytest.approx(1.5)


@pytest.mark.parametrize("wrong", [{"context": 0}, {"batch": 0}, {"steps": 0}, {"measures": "both"}])
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Workload(**{"measures": "decode", "context": 1, **wrong})


def test_every_pair_of_context_and_batch_is_a_workload() -> None:
    made = workloads([128, 512], [32, 8192], [1, 16])
    assert [w.name for w in made] == [
        "prefill-128",
        "prefill-512",
        "decode-32",
        "decode-32x16",
        "decode-8192",
        "decode-8192x16",
    ]
    assert len({w.name for w in made}) == len(made)


def test_long_contexts_are_read_once_and_stay_about_as_long() -> None:
    short, long = workloads([], [32, 8192], [1])
    assert not short.goes_on
    assert long.goes_on
    assert long.room(7) < 0.05 * long.context
    assert short.context < LONG_CONTEXT


def test_prompts_differ_and_come_again() -> None:
    workload = Workload(measures="decode", context=20, batch=3)
    made = prompts(workload, 50)
    assert made == prompts(workload, 50)
    assert len({tuple(prompt) for prompt in made}) == 3
    assert all(len(prompt) == 20 and min(prompt) >= 3 and max(prompt) < 50 for prompt in made)
