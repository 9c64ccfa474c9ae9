"""A beginning that was computed for one request is not computed again for the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

import ernie_accel as ea
from ernie_accel.engine import prefix
from ernie_accel.engine.request import Request
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.engine.conftest import Gate

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]
SYSTEM = [3 + i % 50 for i in range(48)]


def computed(bench: Bench) -> int:
    return sum(len(step.token_ids) for batch in bench.runner.steps for step in batch)


def test_a_prompt_seen_before_is_not_computed_again(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True)
    first = engine.submit(request_of([*SYSTEM, 7, 8], max_tokens=4)).result()
    before = computed(bench)
    again = engine.submit(request_of([*SYSTEM, 7, 8], max_tokens=4)).result()
    assert again.token_ids == first.token_ids
    assert (
        computed(bench) - before == 1 + 3
    )  # the prompt's last token, whose answer is needed, and what was drawn
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 49)
    other = engine.submit(request_of([*SYSTEM, 20, 21], max_tokens=4)).result()
    assert other.usage.cached_tokens == 48
    assert engine.metrics().counters["cached_tokens"] == 49 + 48


def test_an_answer_is_a_beginning_too(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True)
    first = engine.submit(request_of(SYSTEM, max_tokens=20)).result()
    turn = [*SYSTEM, *first.token_ids, 9]
    # the last token that was drawn is known, but nobody has computed what follows it
    assert engine.submit(request_of(turn, max_tokens=4)).result().usage.cached_tokens == 48 + 19
    assert bench.open_sequences() == 1  # the longer one replaces its own beginning


def test_a_higher_priority_does_not_wait_for_a_lower_one(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True, max_step_tokens=16)
    gate = Gate(bench.runner, 1)
    low = engine.submit(request_of([*SYSTEM, *SYSTEM, 7], max_tokens=1))
    with gate:
        high = engine.submit(request_of([*SYSTEM, *SYSTEM, 8], max_tokens=1, priority=1))
    assert high.result().token_ids == low.result().token_ids
    assert bench.runner.steps[1][0].seq != bench.runner.steps[0][0].seq


def test_two_blocks_with_one_key_are_only_a_hint(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "hash", lambda block: 1, raising=False)
    engine = bench.engine(prefix_cache=True)
    first = engine.submit(request_of(SYSTEM, max_tokens=4)).result()
    assert engine.submit(request_of(SYSTEM, max_tokens=4)).result().token_ids == first.token_ids
    other = engine.submit(request_of([60] * 40, max_tokens=4)).result()
    assert (other.usage.cached_tokens, len(other.token_ids)) == (0, 4)
    engine.clear_cache()
    assert bench.open_sequences() == 0


def test_little_in_common_is_not_shared(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True)
    engine.submit(request_of(SYSTEM, max_tokens=4)).result()
    other = [*SYSTEM[:12], *[60] * 30]
    assert engine.submit(request_of(other, max_tokens=4)).result().usage.cached_tokens == 0


def test_those_that_come_together_wait_for_the_first(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True, max_step_tokens=16)
    gate = Gate(bench.runner, 1)
    handles = [engine.submit(request_of([*SYSTEM, 5 + i], max_tokens=3)) for i in range(4)]
    with gate:
        pass
    cached = [handle.result().usage.cached_tokens for handle in handles]
    assert cached[0] == 0
    assert all(count >= 32 for count in cached[1:])  # the last blocks are not worth the wait


def test_waiting_for_a_beginning_costs_no_search_a_step(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    common = prefix._common

    def compare(a: Sequence[int], b: Sequence[int], most: int) -> int:
        compared.append(most)
        return common(a, b, most)

    monkeypatch.setattr(prefix, "_common", compare)
    engine = bench.engine(reply="ab", prefix_cache=True, max_step_tokens=8)
    beginning = [5 + i % 7 for i in range(200)]
    handles = engine.submit_all([request_of([*beginning, 5 + n]) for n in range(6)])
    results = [handle.result() for handle in handles]
    assert len(bench.runner.steps) > 25
    assert all(done.usage.cached_tokens > 150 for done in results[1:])
    assert len(compared) < 60


def test_it_can_be_switched_off(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=False)
    for _ in range(2):
        assert engine.submit(request_of(SYSTEM, max_tokens=4)).result().usage.cached_tokens == 0
    assert bench.open_sequences() == 0


def test_what_is_kept_makes_room(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True, kv_tokens=400)
    for i in range(20):
        prompt = [3 + (i * 7 + j) % 50 for j in range(60)]
        assert engine.submit(request_of(prompt, max_tokens=10)).result().finish_reason == "length"
        assert engine.metrics().gauges["kv_kept_tokens"] <= 256
    engine.submit(request_of([9] * 200, max_tokens=50)).result()
    assert engine.metrics().counters["preemptions"] == 0
    engine.clear_cache()
    assert bench.open_sequences() == 0
    assert engine.metrics().gauges["kv_used_tokens"] == 0


def test_a_request_that_needs_all_memory_gets_it(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True, kv_tokens=120)
    engine.submit(request_of(SYSTEM[:20], max_tokens=5)).result()
    assert engine.metrics().gauges["kv_kept_tokens"] == 24
    assert engine.submit(request_of([9] * 40, max_tokens=80)).result().finish_reason == "length"
    assert engine.metrics().gauges["kv_kept_tokens"] == 119  # of the second alone


def test_the_least_recently_used_goes_first(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "KEPT_SEQUENCES", 2)
    engine = bench.engine(prefix_cache=True)

    def cached(start: int) -> int:
        prompt = [3 + (start * 17 + j) % 50 for j in range(40)]
        return engine.submit(request_of(prompt, max_tokens=1)).result().usage.cached_tokens

    assert [cached(i) for i in (0, 1, 0, 2, 0, 1)] == [0, 0, 39, 0, 39, 0]


def test_equal_keys_of_different_tokens_are_no_match(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "hash", lambda tokens: 1, raising=False)
    engine = bench.engine(prefix_cache=True, certainty=0.3)
    params = {"temperature": 1.0, "max_tokens": 10}
    for i in range(4):
        prompt = [3 + (i * 11 + j) % 50 for j in range(40)]
        alone = bench_alone(prompt, params, request_of)
        assert engine.submit(request_of(prompt, **params)).result().token_ids == alone


def bench_alone(prompt: list[int], params: dict[str, float], request_of: Ask) -> tuple[int, ...]:
    from tests.unit.engine.conftest import Bench

    return Bench().engine(certainty=0.3).submit(request_of(prompt, **params)).result().token_ids


def test_alternatives_leave_nothing_but_what_is_kept(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True, certainty=0.2)
    done = engine.submit(request_of(SYSTEM, n=3, temperature=1.0, max_tokens=8)).result()
    assert len(done.alternatives) == 2
    assert bench.open_sequences() == engine.metrics().gauges["kept_sequences"] == 3


def test_scores_and_logits_are_never_taken_from_it(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(prefix_cache=True)
    engine.submit(request_of(SYSTEM, max_tokens=4)).result()
    assert engine.logits(SYSTEM).shape[0] == len(SYSTEM)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_results_on_the_native_engine_do_not_depend_on_it(precision: str) -> None:
    checkpoint = synthetic(tiny_config())
    prompts = [[*SYSTEM, *[(i * 5 + j) % 600 for j in range(i)]] for i in range(1, 12)]
    options = {"backend": "native", "precision": precision}
    with ea.Model.load(checkpoint, **options, engine=ea.EngineOptions(prefix_cache=False)) as plain:  # type: ignore[arg-type]
        expected = [plain.generate(p, max_tokens=12, temperature=1.0, seed=4).token_ids for p in prompts]
    with ea.Model.load(checkpoint, **options) as model:  # type: ignore[arg-type]
        for _ in range(2):
            found: dict[int, tuple[int, ...]] = {}

            def ask(index: int, found: dict[int, tuple[int, ...]] = found) -> None:
                done = model.generate(prompts[index], max_tokens=12, temperature=1.0, seed=4)
                found[index] = done.token_ids

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [found[i] for i in range(len(prompts))] == expected
        metrics = model.metrics()
        assert metrics.counters["cached_tokens"] > 0
        model.clear_cache()
        assert model.metrics().gauges["kv_used_tokens"] == 0
