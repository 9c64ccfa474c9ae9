"""Who comes first, how much a step holds, and what waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import ernie_accel as ea
from ernie_accel.engine.budget import Budget
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.reader import LogitsReader
from ernie_accel.engine.request import Request
from ernie_accel.errors import ArgumentError, CapacityError, ClosedError, DeadlineError, QueueFullError
from tests.unit.engine.conftest import Gate

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]


def order_of(bench: Bench) -> list[int]:
    """First ids of the prompts in the order in which they were begun."""
    return list(
        dict.fromkeys(step.token_ids[0] for batch in bench.runner.steps for step in batch if step.seq)
    )


def test_a_higher_priority_is_started_first(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1)
    gate = Gate(bench.runner, 1)
    handles = [
        engine.submit(request_of([10 + i], max_tokens=1, priority=priority))
        for i, priority in enumerate((0, 0, 5, -1, 5))
    ]
    with gate:
        pass
    for handle in handles:
        handle.result()
    assert order_of(bench) == [10, 12, 14, 11, 13]


def test_the_lowest_priority_makes_room(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(kv_tokens=60, certainty=0.3)
    params = {"temperature": 1.0, "max_tokens": 30, "seed": 4}
    gate = Gate(bench.runner, 1)
    low = engine.submit(request_of([5] * 10, priority=0, **params))
    high = [engine.submit(request_of([6 + i] * 10, priority=1, **params)) for i in range(2)]
    with gate:
        pass
    everyone = [handle.result() for handle in (*high, low)]
    assert engine.metrics().counters["preemptions"] >= 1
    assert all(len(done.token_ids) == 30 for done in everyone)
    first = bench.runner.steps[0]
    assert [step.token_ids[0] for step in first] == [5]


def test_a_short_prompt_passes_a_long_one_and_both_end(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_step_tokens=16, max_context=2000)
    gate = Gate(bench.runner, 2)
    long = engine.submit(request_of([5] * 1000, max_tokens=1))
    with gate:
        short = engine.submit(request_of([6] * 10, max_tokens=1))
    assert long.result().finish_reason == short.result().finish_reason == "length"
    assert [step.token_ids[0] for step in bench.runner.steps[2]] == [6, 5]


def test_short_prompts_do_not_hold_up_a_long_one_for_ever(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_step_tokens=16, max_context=2000, max_sequences=3)
    long = engine.submit(request_of([5] * 160, max_tokens=1))
    short = [engine.submit(request_of([6 + i % 40] * 16, max_tokens=1)) for i in range(100)]
    for handle in (long, *short):
        handle.result()
    last = max(
        number for number, batch in enumerate(bench.runner.steps) if any(5 in s.token_ids for s in batch)
    )
    assert last < 60


def test_who_writes_takes_turns_where_a_step_is_too_small(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(step_tokens=2, reply=[9] * 20)
    gate = Gate(bench.runner, 1)
    handles = [engine.submit(request_of([5 + i], max_tokens=6)) for i in range(6)]
    with gate:
        pass
    for handle in handles:
        handle.result()
    turns = [step.seq for batch in bench.runner.steps for step in batch]
    assert {turns[:18].count(seq) for seq in set(turns)} <= {2, 3, 4}


def test_the_last_to_arrive_makes_room(bench: Bench, request_of: Ask) -> None:
    """Not the last to start: that may be one which made room before."""
    scheduler = bench.engine()._scheduler
    first, second = LogitsReader([5], 1), LogitsReader([6], 1)
    first.arrival, second.arrival = 1, 2
    scheduler._running += [second, first]
    assert scheduler._make_room(CapacityError("full")) is second


def test_many_alternatives_do_not_hide_who_comes_after_them(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_step_tokens=16)
    gate = Gate(bench.runner, 1)
    many = engine.submit(request_of([5] * 100, n=100, max_tokens=1))
    with gate:
        one = engine.submit(request_of([6], max_tokens=1))
    assert one.result().finish_reason == "length"
    assert len(many.result().alternatives) == 99
    began = [
        number for number, batch in enumerate(bench.runner.steps) if any(6 in s.token_ids for s in batch)
    ]
    assert began == [1]


def test_one_that_cannot_even_begin_leaves_the_queue(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine()

    def refuse() -> int:
        raise CapacityError("none left")

    monkeypatch.setattr(bench.runner, "open", refuse)
    with pytest.raises(CapacityError, match="although nothing else runs: none left"):
        engine.submit(request_of()).result()
    assert engine.metrics().gauges["waiting"] == len(engine._scheduler.queued) == 0
    monkeypatch.undo()
    assert engine.submit(request_of(max_tokens=2)).result().finish_reason == "length"


@pytest.mark.parametrize("method", ["open", "free"])
def test_a_broken_runner_leaves_the_books_in_order(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = bench.engine(max_sequences=2, queue_size=3)
    scheduler, original = engine._scheduler, getattr(bench.runner, method)
    calls: list[int] = []

    def fail(*args: int) -> Any:
        calls.append(1)
        return 1 // 0 if method == "free" or len(calls) == 2 else original(*args)

    monkeypatch.setattr(bench.runner, method, fail)
    gate = Gate(bench.runner, 1)
    deadline = time.monotonic() + 60
    handles = [engine.submit(request_of([5], max_tokens=1, deadline=deadline))]
    with gate:
        handles += [engine.submit(request_of([6 + i], max_tokens=1, deadline=deadline)) for i in range(3)]
    errors = []
    for handle in handles:
        try:
            handle.result()
        except ea.BackendError as error:
            errors.append(error)
    assert len(set(map(id, errors))) == len(errors) >= 2  # each its own
    metrics = engine.metrics()
    assert (metrics.gauges["waiting"], metrics.gauges["running"]) == (0, 0)
    assert sum(metrics.counters[f"requests_{how}"] for how in ("length", "failed")) == 4
    assert (scheduler._timed, len(scheduler.queued)) == (0, 0)
    monkeypatch.undo()


def test_step_tokens_bounds_a_step(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(step_tokens=8)
    engine.submit(request_of([5] * 40, max_tokens=2)).result()
    assert max(sum(len(step.token_ids) for step in batch) for batch in bench.runner.steps) == 8


def test_the_queue_is_bounded(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1, queue_size=2)
    gate = Gate(bench.runner, 1)
    running = engine.submit(request_of([5], max_tokens=2))
    with gate:
        waiting = [engine.submit(request_of([6 + i], max_tokens=1)) for i in range(2)]
        with pytest.raises(QueueFullError, match="2 requests wait already, and queue_size is 2"):
            engine.submit(request_of([9]), block=False)
        late: list[Any] = []
        thread = threading.Thread(target=lambda: late.append(engine.submit(request_of([9], max_tokens=1))))
        thread.start()
        thread.join(0.05)
        assert not late
    thread.join()
    for handle in (running, *waiting, *late):
        assert handle.result().finish_reason == "length"


def test_a_timeout_holds_before_the_queue_too(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1, queue_size=1)
    gate = Gate(bench.runner, 1)
    running = engine.submit(request_of([5], max_tokens=1))
    with gate:
        waiting = engine.submit(request_of([6], max_tokens=1))
        with pytest.raises(DeadlineError, match="longer than its timeout"):
            engine.submit(request_of([7], deadline=time.monotonic() + 0.02))
    assert running.result().finish_reason == waiting.result().finish_reason == "length"
    assert order_of(bench) == [5, 6]


def test_without_waiting_a_request_enters_as_a_whole_or_not_at_all(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1, queue_size=3)
    gate = Gate(bench.runner, 1)
    running = engine.submit(request_of([5], max_tokens=1))
    with gate:
        waiting = engine.submit(request_of([6], max_tokens=1))
        with pytest.raises(QueueFullError):
            engine.submit(request_of([7], n=3, max_tokens=1), block=False)
        assert engine._scheduler.queued.keys() == set(waiting.writers)
    assert running.result().finish_reason == waiting.result().finish_reason == "length"
    more_than_the_queue_holds = engine.submit(request_of([7], n=5, max_tokens=1), block=False)
    assert len(more_than_the_queue_holds.result().alternatives) == 4


def test_closing_wakes_who_waits_for_the_queue(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1, queue_size=1, max_context=10**6, kv_tokens=10**7)
    gate = Gate(bench.runner, 1)
    engine_handles = [
        engine.submit(request_of([5], max_tokens=10**6))
    ]  # does not end before the closing comes
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            engine.submit(request_of([9]))
        except ClosedError as error:
            errors.append(error)

    with gate:
        engine_handles.append(engine.submit(request_of([6])))
        asking = threading.Thread(target=ask)
        asking.start()
        closing = threading.Thread(target=engine.close)
        closing.start()
    closing.join()
    asking.join()
    assert len(errors) == 1
    for handle in engine_handles:
        with pytest.raises(ClosedError):
            handle.result()


def test_a_failure_of_the_bookkeeping_ends_everything_and_nothing_hangs(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine()
    monkeypatch.setattr(bench.runner, "capacity", lambda: 1 // 0)
    handle = engine.submit(request_of())
    with pytest.raises(ea.BackendError, match="backend 'scripted' failed in a step: ZeroDivisionError"):
        handle.result()
    monkeypatch.undo()
    assert engine.submit(request_of(max_tokens=2)).result().finish_reason == "length"
    assert bench.open_sequences() == 0


def test_metrics_count_what_happens(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abc")
    engine.submit(request_of()).result()
    engine.submit(request_of(max_tokens=1)).result()
    with pytest.raises(ea.DeadlineError):
        engine.submit(request_of(deadline=0.0)).result()
    metrics = engine.metrics()
    counters = metrics.counters
    assert (counters["requests_stop"], counters["requests_length"], counters["requests_failed"]) == (1, 1, 1)
    assert (counters["prompt_tokens"], counters["generated_tokens"]) == (6, 5)
    assert counters["computed_tokens"] == 3 + 3 + 3
    assert counters["steps"] == metrics.histograms["step_seconds"].count == len(bench.runner.steps)
    assert metrics.histograms["time_to_first_token_seconds"].count == 2
    assert metrics.histograms["inter_token_seconds"].count == 3
    assert metrics.gauges["running"] == metrics.gauges["waiting"] == 0
    sizes = metrics.histograms["batch_size"]
    assert (sizes.mean, sizes.quantile(0.5)) == (1.0, 1)
    with pytest.raises(ea.ArgumentError, match=r"share=95: must be from 0 to 1; 0.95 is the 95th percentile"):
        sizes.quantile(95)
    assert "inter_token_seconds" in repr(metrics)
    assert "<table" in metrics._repr_html_()


def test_requests_are_counted_apart_from_alternatives_and_texts(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abc")
    engine.submit(request_of(n=3)).result()
    engine.score([[1, 2], [3, 4]])
    metrics = engine.metrics()
    counters = metrics.counters
    assert (counters["requests_stop"], counters["alternatives"], counters["texts"]) == (1, 2, 2)
    assert sum(value for name, value in counters.items() if name.startswith("requests_")) == 1
    assert metrics.histograms["request_seconds"].count == metrics.histograms["queue_seconds"].count == 1
    assert metrics.histograms["time_to_first_token_seconds"].count == 3


def test_a_budget_follows_the_target() -> None:
    budget = Budget(512, target=0.05)
    assert budget.tokens(0) == 512  # nobody waits for a next token
    assert budget.tokens(4) == 80  # nothing is known yet
    for tokens in (4, 100, 40, 250, 4, 300):
        budget.note(tokens, 0.01 + 0.0002 * tokens)
    assert budget.tokens(4) == 200
    assert budget.tokens(250) == 266  # prompts go on even where the target cannot be kept
    slow = Budget(512, target=0.05)
    for _ in range(5):
        slow.note(10, 0.5)
    assert slow.tokens(10) == 26
    assert Budget(512).tokens(16) == 512


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queue_size": 0}, "queue_size=0: must be a whole number of at least 1"),
        ({"step_tokens": 1.5}, r"step_tokens=1\.5: must be a whole number"),
        ({"latency_target": 0}, "latency_target=0: must be None or a number of seconds above 0"),
        ({"speculation": "yes"}, "speculation='yes': must be one of 'off'"),
        ({"prefix_cache": 1}, "prefix_cache=1: must be True or False"),
    ],
)
def test_options_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        EngineOptions(**settings)
