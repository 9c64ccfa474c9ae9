"""Speculation on real kernels: the same tokens, whatever is drafted."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.engine.speculation import Speculation
from ernie_accel.testing import synthetic, tiny_config

pytestmark = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")

CHECKPOINT = synthetic(tiny_config(max_position_embeddings=1024))
MOE = synthetic(tiny_config(moe=True, max_position_embeddings=1024))
PHRASE = [5, 6, 7, 8, 9, 10, 11, 12, 13]
REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (PHRASE * 4, {"temperature": 0.0}),
    ([3], {"temperature": 0.0, "logprobs": 2}),
    (PHRASE * 9, {"temperature": 0.7, "seed": 1, "top_k": 3}),
    (PHRASE * 2, {"temperature": 0.3, "seed": 2, "logprobs": 1, "n": 2}),
    ([20, 21] * 12, {"temperature": 0.2, "seed": 3, "top_p": 0.9}),
    (PHRASE * 3, {"temperature": 0.0, "repetition_penalty": 1.05}),
    ([30, 31, 32] * 5, {"temperature": 0.4, "seed": 4, "frequency_penalty": 0.1}),
    (PHRASE * 2, {"temperature": 0.2, "seed": 5, "min_p": 0.05, "max_tokens": 9}),
]


def load(lookup: bool, checkpoint: Any = CHECKPOINT, backend: str = "native", **options: Any) -> ea.Model:
    engine = ea.EngineOptions(speculation="lookup" if lookup else "off")
    return ea.Model.load(checkpoint, backend=backend, engine=engine, **options)


def drawn(completion: ea.Completion) -> list[tuple[Any, ...]]:
    return [(c.token_ids, c.logprobs, c.finish_reason) for c in (completion, *completion.alternatives)]


def ask(model: ea.Model) -> list[Any]:
    handles = [
        model.submit(prompt, **{"max_tokens": 60, "ignore_eos": True, **params})
        for prompt, params in REQUESTS
    ]
    return [drawn(handle.result()) for handle in handles]


@pytest.fixture(params=["as it pays", "always"])
def drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "always":
        monkeypatch.setattr(Speculation, "depth", lambda self, match, chances, most: max(0, min(most, 7)))
    return str(request.param)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_tokens_are_those_without_speculation(drafts: str, precision: Any) -> None:
    with load(False, precision=precision, threads=1) as model:
        expected = ask(model)
    for threads in (1, 3):
        with load(True, precision=precision, threads=threads, max_batch=5) as model:
            assert ask(model) == expected
            accepted = model.metrics().counters["accepted_tokens"]
            assert accepted > 0 or drafts != "always"


def test_experts_give_the_same_tokens_too(drafts: str) -> None:
    with load(False, MOE) as plainly, load(True, MOE) as model:
        assert ask(model) == ask(plainly)


def test_a_small_cache_and_threads_change_nothing(drafts: str) -> None:
    with load(False) as model:
        expected = ask(model)
    with load(True, memory_limit=100_000, max_batch=32) as model:
        answers: list[Any] = [None] * 4

        def work(index: int) -> None:
            answers[index] = ask(model)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [expected] * 4
        assert model.metrics().counters["preemptions"] > 0
        model.clear_cache()
        assert model.metrics().gauges["kv_used_tokens"] == 0


@pytest.mark.usefixtures("drafts")
def test_a_backend_that_does_not_draw_takes_drafts() -> None:
    with load(False, backend="reference") as plainly, load(True, backend="reference") as model:
        for prompt, params in REQUESTS[:3]:
            settled = {"max_tokens": 12, **params}
            assert (
                model.generate(prompt, **settled).token_ids == plainly.generate(prompt, **settled).token_ids
            )
