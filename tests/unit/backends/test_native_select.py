from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ernie_accel import _native
from ernie_accel.backends.base import Select
from ernie_accel.backends.native.steps import native_select
from ernie_accel.engine.sampling import select_rows
from ernie_accel.testing.conformance.results import check_logprobs
from ernie_accel.types import TokenLogprob

VOCAB = 103424

Logits = npt.NDArray[np.float32]


def flat(rng: np.random.Generator) -> Logits:
    return rng.standard_normal(VOCAB).astype(np.float32)


def peaked(rng: np.random.Generator) -> Logits:
    return (rng.standard_normal(VOCAB) * 4).astype(np.float32)


def equal(rng: np.random.Generator) -> Logits:
    return rng.integers(-3, 4, VOCAB).astype(np.float32)


def far_from_zero(rng: np.random.Generator) -> Logits:
    return (1000 + rng.standard_normal(VOCAB) * 1e-3).astype(np.float32)


SETTINGS = [
    Select(),
    Select(temperature=1.0),
    Select(temperature=1.0, top_k=50),
    Select(temperature=0.8, top_k=5000, top_p=0.95),
    Select(temperature=1.0, top_p=0.8),
    Select(temperature=30.0, top_p=0.5),
    Select(temperature=1.0, min_p=0.05),
    Select(temperature=0.6, top_k=40, top_p=0.9, min_p=0.02),
    Select(temperature=1.0, top_p=0.8, logprobs=5),
]


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("make", [flat, peaked, equal, far_from_zero])
def test_draws_are_those_of_the_definition(isa: str, make: Callable[[np.random.Generator], Logits]) -> None:
    rng = np.random.default_rng(4)
    logits = make(rng)
    mask = rng.integers(0, 2**32, VOCAB // 32, dtype=np.uint32)
    seen = np.unique(rng.integers(0, VOCAB, 500)).astype(np.int32)
    penalties = Select(repetition_penalty=1.3, presence_penalty=0.2, seen=seen, counts=seen % 3)
    for seed, settings in enumerate(SETTINGS):
        for select in (
            settings,
            replace(settings, mask=mask, vocab_limit=VOCAB - 400),
            replace(
                settings,
                repetition_penalty=penalties.repetition_penalty,
                presence_penalty=penalties.presence_penalty,
                seen=penalties.seen,
                counts=penalties.counts,
            ),
        ):
            asked = replace(select, seed=seed)
            ids, logprobs = select_rows(logits[None], asked, 5)
            token, logprob, top = _native.select_from(native_select(asked), logits, 5, isa)
            assert token == ids[0]
            if logprobs is not None:
                check_logprobs((TokenLogprob(token, logprob, tuple(top)),), logprobs)
