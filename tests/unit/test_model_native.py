"""The whole way from ``Model`` to the kernels, on models small enough for milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.backends.native.backend import NativeOptions
from ernie_accel.testing import synthetic, tiny_config

pytestmark = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")

CHECKPOINT = synthetic(tiny_config(max_position_embeddings=1024))
SAMPLING: dict[str, Any] = {
    "max_tokens": 24,
    "temperature": 1.0,
    "seed": 7,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "logprobs": 2,
    "ignore_eos": True,
}
PROMPTS = [[5, 6, 7], [9] * 40, [3], [11, 12] * 30]


def load(**options: Any) -> ea.Model:
    return ea.Model.load(CHECKPOINT, backend="native", **options)


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8"])
def model(request: pytest.FixtureRequest) -> Iterator[ea.Model]:
    with load(precision=request.param) as model:
        yield model


def drawn(completion: ea.Completion) -> tuple[Any, ...]:
    return completion.token_ids, completion.logprobs, completion.seed


def test_automatic_precision_is_int8() -> None:
    with load() as model:
        assert (model.info.precision, model.info.kv_precision) == ("int8", "int8")
        assert model.info.recipe is not None


@pytest.mark.parametrize(
    ("precision", "kv_precision"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")]
)
def test_the_automatic_cache_is_as_precise_as_the_weights(precision: Any, kv_precision: str) -> None:
    with load(precision=precision) as model:
        assert model.info.kv_precision == kv_precision


def test_a_batch_is_its_prompts_one_by_one(model: ea.Model) -> None:
    together = model.generate(PROMPTS, **SAMPLING)
    assert [drawn(c) for c in together] == [drawn(model.generate(p, **SAMPLING)) for p in PROMPTS]


def test_alternatives_are_what_their_seeds_give(model: ea.Model) -> None:
    several = model.generate(PROMPTS[1], n=4, **SAMPLING)
    for one in (several, *several.alternatives):
        assert drawn(model.generate(PROMPTS[1], **{**SAMPLING, "seed": one.seed})) == drawn(one)


@pytest.mark.parametrize("wrong", [{"max_step_tokens": "9"}, {"resident": "yes"}, {"whole_head": 3}])
def test_options_of_the_backend_are_checked(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ea.ArgumentError) as error:
        NativeOptions(**wrong)
    assert str(error.value).startswith(f"{name}={value!r}: must be ")


def test_chunks_of_the_prompt_change_nothing(model: ea.Model) -> None:
    expected = [drawn(c) for c in model.generate(PROMPTS, **SAMPLING)]
    options = NativeOptions(max_step_tokens=16)
    with load(precision=model.info.precision, backend_options=options) as small:
        assert [drawn(c) for c in small.generate(PROMPTS, **SAMPLING)] == expected
        assert np.array_equal(small.logits(PROMPTS[3]), model.logits(PROMPTS[3]))


def test_giving_way_for_want_of_memory_changes_nothing() -> None:
    params = {**SAMPLING, "max_tokens": 200}
    with load(precision="fp32") as wide:
        expected = [drawn(c) for c in wide.generate(PROMPTS, **params)]
    with load(precision="fp32", memory_limit=32 * 1024 * 16) as tight:
        capacity = tight._engine._runner.capacity().free_tokens  # type: ignore[attr-defined]
        assert capacity < sum(len(p) + 200 for p in PROMPTS)
        assert [drawn(c) for c in tight.generate(PROMPTS, **params)] == expected


def test_too_little_memory_for_one_request() -> None:
    with load(precision="fp32", memory_limit=32 * 1024) as tight:
        with pytest.raises(ea.CapacityError, match="although nothing else runs"):
            tight.generate([5] * 1000, max_tokens=8)
        assert len(tight.generate([5], max_tokens=3, ignore_eos=True).token_ids) == 3


def test_logprobs_are_those_of_score(model: ea.Model) -> None:
    done = model.generate([5, 6], max_tokens=5, temperature=0, logprobs=1, ignore_eos=True)
    assert done.logprobs is not None
    score = model.score([5, 6, *done.token_ids])
    assert [entry.logprob for entry in done.logprobs] == pytest.approx(score.logprobs[2:], abs=1e-5)


def test_progress_reaches_its_end() -> None:
    calls: list[tuple[str, int, int]] = []
    load(progress=lambda *call: calls.append(call)).close()
    assert calls
    assert calls[-1][1] == calls[-1][2]
