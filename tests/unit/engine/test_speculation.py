from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from ernie_accel.engine.local import LocalEngine
from ernie_accel.engine.request import Request
from ernie_accel.engine.speculation import LEARNED_AT_ONCE, MOST_DRAFTS, Chances, Drafter, Speculation
from ernie_accel.engine.stream import TokenStream
from ernie_accel.errors import BackendError
from ernie_accel.types import Completion

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]

LOOP = [10, 11, 12, 13, 14, 15, 16, 17]
"""What prompts quote and replies go on quoting."""


def plain(completion: Completion) -> tuple[Any, ...]:
    return completion.text, completion.token_ids, completion.finish_reason, completion.logprobs


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are taken whatever they cost."""
    monkeypatch.setattr(Speculation, "depth", lambda self, match, chances, most: max(0, min(most, 5)))


def known(durations: dict[int, float]) -> Speculation:
    speculation = Speculation()
    for _ in range(30):
        for tokens, seconds in durations.items():
            speculation.costs.note(tokens, seconds)
    return speculation


def depth(speculation: Speculation, requests: int, chance: float, most: int = 100) -> int:
    speculation.begin(requests)
    return speculation.depth(1, [chance] * 7, most)


def test_chances_begin_with_what_is_known_and_follow_what_is_seen() -> None:
    before = Chances((0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5), memory=64)
    chances = Chances(before, memory=64)
    assert chances.values[1:] == [0.5] * 6
    for _ in range(40):
        chances.note(5, True)
        chances.note(1, False)
    assert chances.values[4] > 0.9
    assert chances.values[1] < 0.1
    assert chances.values[2] == 0.5
    assert before.values[4] > 0.8
    for _ in range(100):
        chances.note(5, False)
    assert chances.values[4] < 0.4


def test_drafts_are_as_many_as_pay() -> None:
    cheap = known({1: 1.0, 2: 1.05, 4: 1.1, 8: 1.3, 12: 1.4, 16: 1.6, 24: 2.4})
    assert depth(cheap, 1, 0.02) == 0
    assert 0 < depth(cheap, 1, 0.5) < depth(cheap, 1, 0.9) < depth(cheap, 1, 0.99) <= MOST_DRAFTS
    assert depth(cheap, 1, 0.99, most=3) == 3
    assert depth(cheap, 1, 0.99, most=-1) == 0
    dear = known({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
    assert depth(dear, 1, 0.9) == 0


def test_a_full_batch_leaves_no_time_for_drafts() -> None:
    line = {1: 1.0, **{rows: 1 + 0.1 * max(0, rows - 8) for rows in range(2, 65, 2)}}
    speculation = known(line)
    assert depth(speculation, 1, 0.6) > 0
    assert depth(speculation, 32, 0.6) == 0


def test_in_a_batch_drafts_must_promise_more() -> None:
    """One draft raises the tokens of the step by a tenth, and its duration by nothing."""
    alone = known({1: 0.01, 2: 0.01})
    assert depth(alone, 1, 0.1, most=1) == 1
    together = known({8: 0.01, 9: 0.01})
    assert depth(together, 8, 0.8, most=1) == 0
    assert depth(known({8: 0.01, 9: 0.01, 10: 0.01}), 8, 0.99, most=2) == 2


def test_requests_of_a_step_share_what_it_has_room_for() -> None:
    speculation = known({1: 1.0, 8: 1.1, 9: 4.0, 16: 8.0, 32: 16.0})
    speculation.begin(2)
    first, second = (speculation.depth(20, [0.95] * 7, 100) for _ in range(2))
    assert first + second == 6


def test_the_number_of_drafts_grows_as_costs_become_known() -> None:
    assert depth(Speculation(), 1, 0.99) <= 4


def test_right_guesses_are_learned_without_drafting(bench: Bench) -> None:
    speculation = Speculation()
    tokens = LOOP * 3
    drafter = Drafter(tokens, len(LOOP) + 1, speculation)
    assert drafter.drafts(0) == []
    tokens += LOOP
    drafter.drafts(0)
    assert speculation.chances.values[-1] > 0.9


def test_a_long_prompt_is_indexed_in_parts() -> None:
    tokens = LOOP * (LEARNED_AT_ONCE // 8 + 1)
    speculation = known({1: 1.0, 8: 1.1})
    speculation.begin(1)
    drafter = Drafter(tokens, len(tokens), speculation)
    assert drafter.drafts(4) == []
    assert drafter.drafts(4) == LOOP[:4]


def both(bench: Bench, ask: Callable[[LocalEngine], Any], **settings: Any) -> tuple[Any, Any]:
    plainly = ask(bench.engine(**settings))
    return plainly, ask(bench.engine(speculation="lookup", **settings))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("select", [False, True])
def test_drafts_that_are_right_save_steps(bench: Bench, request_of: Ask, select: bool) -> None:
    def ask(engine: LocalEngine) -> tuple[Any, int]:
        done = engine.submit(request_of([*LOOP, 3], max_tokens=60, logprobs=2)).result()
        return plain(done), len(bench.runner.steps)

    (expected, many), (got, few) = both(bench, ask, reply=LOOP * 4, certainty=2.0, select=select)
    assert got == expected
    assert few < many / 2
    lengths = [len(step.token_ids) for batch in bench.runner.steps for step in batch]
    assert max(lengths[1:]) == 6


@pytest.mark.usefixtures("eager")
def test_a_step_asks_for_a_row_after_each_draft(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP, select=True, speculation="lookup")
    engine.submit(request_of([3, *LOOP, 3])).result()
    drafted = [step for batch in bench.runner.steps[1:] for step in batch]
    assert all(step.rows == len(step.token_ids) for step in drafted)
    assert list(drafted[0].token_ids) == [10, 11, 12, 13, 14, 15]


@pytest.mark.usefixtures("eager")
def test_what_was_drafted_is_counted(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 2, speculation="lookup")
    done = engine.submit(request_of([*LOOP, 3])).result()
    counters = engine.metrics().counters
    assert (done.timings.drafted_tokens, done.timings.accepted_tokens) == (
        counters["drafted_tokens"],
        counters["accepted_tokens"],
    )
    assert 8 <= done.timings.accepted_tokens < done.timings.drafted_tokens
    assert counters["generated_tokens"] == len(done.token_ids)
    off = bench.engine(reply=LOOP * 2)
    assert off.submit(request_of([*LOOP, 3])).result().timings.drafted_tokens == 0


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "params",
    [
        {"stop": ("kl",)},
        {"stop": ("jk", "zz"), "logprobs": 1},
        {"stop_token_ids": (13,)},
        {"max_tokens": 1},
        {"max_tokens": 2},
        {"max_tokens": 7},
        {"temperature": 3.0, "seed": 4},
        {"temperature": 2.0, "top_k": 3, "logprobs": 1},
        {"repetition_penalty": 1.3, "temperature": 1.0},
        {"presence_penalty": 0.5, "temperature": 1.0},
        {"frequency_penalty": 0.5, "logprobs": 3},
        {"n": 3, "temperature": 1.5},
    ],
)
@pytest.mark.parametrize("select", [False, True])
def test_every_way_to_end_and_to_draw_gives_the_same(
    bench: Bench, request_of: Ask, select: bool, params: dict[str, Any]
) -> None:
    def ask(engine: LocalEngine) -> list[Any]:
        done = engine.submit(request_of([*LOOP, 3, *LOOP, 3], **{"max_tokens": 40, **params})).result()
        assert bench.open_sequences() == 0
        return [plain(one) for one in (done, *done.alternatives)]

    expected, got = both(bench, ask, reply=LOOP * 3, certainty=1.0, select=select)
    assert got == expected


@pytest.mark.usefixtures("eager")
def test_drafts_end_with_the_context(bench: Bench, request_of: Ask) -> None:
    def ask(engine: LocalEngine) -> Any:
        runner = bench.runner
        runner.before = lambda number: reached.extend(
            runner.length(step.seq) + len(step.token_ids) for step in runner.steps[-1]
        )
        return plain(engine.submit(request_of([*LOOP, 3], max_tokens=100)).result())

    for context in range(10, 24):
        reached: list[int] = []
        expected, got = both(bench, ask, reply=LOOP * 4, max_context=context)
        assert got == expected
        assert max(reached) <= context


@pytest.mark.usefixtures("eager")
def test_counts_and_nothing_else_forbid_drafts(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 2, select=True, speculation="lookup")
    for params, drafts in (
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": -0.1}, False),
        ({"repetition_penalty": 1.1}, True),
        ({}, True),
    ):
        done = engine.submit(request_of([*LOOP, 3], **params)).result()
        assert (done.timings.drafted_tokens > 0) is drafts


@pytest.mark.usefixtures("eager")
def test_chunks_come_one_a_token(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 2, speculation="lookup")
    chunks = list(TokenStream(engine.submit(request_of([*LOOP, 3], logprobs=1))))
    assert [chunk.token_ids for chunk in chunks] == [(token,) for token in [*LOOP, *LOOP, 2]]
    assert [entry.token_id for c in chunks for entry in c.logprobs or ()] == [*LOOP, *LOOP, 2]
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * 16


@pytest.mark.usefixtures("eager")
def test_drafts_make_nobody_give_up_memory(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 2, speculation="lookup", kv_tokens=28)
    done = engine.submit(request_of([*LOOP, 3])).result()
    assert done.token_ids == (*LOOP, *LOOP, 2)
    assert engine.metrics().counters["preemptions"] == 0


@pytest.mark.usefixtures("eager")
def test_requests_that_make_room_for_others_go_on_as_before(bench: Bench, request_of: Ask) -> None:
    def ask(engine: LocalEngine) -> list[Any]:
        prompts = [[*LOOP, 3 + i] for i in range(6)]
        handles = [engine.submit(request_of(p, max_tokens=30, temperature=1.0, seed=5)) for p in prompts]
        return [plain(handle.result()) for handle in handles]

    settings: dict[str, Any] = {"reply": LOOP * 3, "certainty": 3.0}
    expected, got = both(bench, ask, **settings)
    assert got == expected
    tight = bench.engine(speculation="lookup", kv_tokens=70, page_size=4, **settings)
    assert ask(tight) == expected
    assert tight.metrics().counters["preemptions"] > 0
    assert bench.open_sequences() == 0


@pytest.mark.usefixtures("eager")
def test_a_step_with_drafts_that_fails_is_tried_without(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 2, speculation="lookup")
    drafted = []

    def fail(number: int) -> None:
        if len(bench.runner.steps[-1][0].token_ids) > 1 and number > 1:
            drafted.append(number)
            raise BackendError("logits hold nan")

    bench.runner.before = fail
    done = engine.submit(request_of([*LOOP, 3])).result()
    assert done.token_ids == (*LOOP, *LOOP, 2)
    assert drafted


@pytest.mark.usefixtures("eager")
def test_an_ended_request_is_kept_for_prompts_that_begin_like_it(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 5, speculation="lookup", prefix_cache=True)
    first = engine.submit(request_of(LOOP * 3)).result()
    again = engine.submit(request_of([*first.prompt_token_ids, *first.token_ids, 5], max_tokens=3)).result()
    assert again.usage.cached_tokens == 40
    plainly = bench.engine(reply=LOOP * 5)
    prompt = again.prompt_token_ids
    assert plain(plainly.submit(request_of(prompt, max_tokens=3)).result()) == plain(again)


@pytest.mark.usefixtures("eager")
def test_cancelling_between_drafts_keeps_what_was_taken(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply=LOOP * 20, speculation="lookup")
    handles: list[Any] = []
    known = threading.Event()

    def cancel(number: int) -> None:
        if number == 4:
            assert known.wait(20)
            handles[0].cancel()

    bench.runner.after = cancel
    handles.append(engine.submit(request_of([*LOOP, 3], max_tokens=100)))
    known.set()
    done = handles[0].result()
    assert done.finish_reason == "cancelled"
    assert done.token_ids == tuple(LOOP * 20)[: len(done.token_ids)]
    assert bench.open_sequences() == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("select", [False, True])
def test_any_drafts_give_the_same_tokens(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch, select: bool, seed: int
) -> None:
    """Right ones, wrong ones, half right ones; short memory; alternatives; everything that ends a request."""
    rng = random.Random(seed)
    requests = [_any_request(rng, request_of) for _ in range(12)]

    def ask(engine: LocalEngine) -> list[Any]:
        handles = [engine.submit(request) for request in requests]
        done = [handle.result() for handle in handles]
        return [[plain(one) for one in (c, *c.alternatives)] for c in done]

    settings: dict[str, Any] = {"certainty": 0.8, "select": select, "max_context": 64}
    expected = ask(bench.engine(**settings))
    written = [
        list(request.token_ids) + list(one[1])
        for request, c in zip(requests, expected, strict=True)
        for one in c
    ]
    monkeypatch.setattr(Drafter, "drafts", lambda self, most: _any_drafts(rng, self._tokens, written, most))
    engine = bench.engine(speculation="lookup", kv_tokens=200, page_size=4, prefix_cache=True, **settings)
    assert ask(engine) == expected
    counters = engine.metrics().counters
    assert 0 < counters["accepted_tokens"] < counters["drafted_tokens"]
    engine.clear_cache()
    assert bench.open_sequences() == 0


def _any_request(rng: random.Random, request_of: Ask) -> Request:
    params: dict[str, Any] = {
        "max_tokens": rng.randrange(1, 50),
        "temperature": rng.choice([0.0, 1.0, 2.0]),
        "seed": rng.randrange(100),
        "n": rng.choice([1, 1, 2]),
        "logprobs": rng.choice([0, 2]),
        "stop": rng.choice([(), ("ab", "q"), ("c",)]),
        "stop_token_ids": rng.choice([(), (30,)]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.2]),
    }
    return request_of([rng.randrange(3, 9) for _ in range(rng.randrange(1, 20))], **params)


def _any_drafts(rng: random.Random, tokens: Sequence[int], written: list[list[int]], most: int) -> list[int]:
    """Ids of the text itself, as lookup would give, that are right up to some point."""
    count = min(most, rng.randrange(0, 7))
    if count <= 0:
        return []
    future = next((w[len(tokens) :] for w in written if w[: len(tokens)] == list(tokens)), [])
    right = list(future[: rng.randrange(0, count + 1)])
    own = set(tokens)
    right = right[: next((i for i, token in enumerate(right) if token not in own), len(right))]
    return (right + [rng.choice(list(own)) for _ in range(count)])[:count]
