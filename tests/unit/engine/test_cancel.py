from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ernie_accel.backends.handle import RequestHandle
from ernie_accel.engine.request import Request
from ernie_accel.engine.stream import TokenStream
from ernie_accel.engine.writer import Writer
from ernie_accel.errors import BackendError, DeadlineError
from ernie_accel.types import Chunk
from tests.unit.engine.conftest import Gate

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]


def test_cancel_keeps_what_there_is(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abcdef")
    gate = Gate(bench.runner, 3)
    stream = TokenStream(engine.submit(request_of(stop="bz")))
    with gate:
        assert [next(stream).text, next(stream).text] == ["a", ""]
        stream.cancel()
    rest = list(stream)
    assert [(chunk.text, chunk.token_ids) for chunk in rest] == [("bc", (5,)), ("", ())]
    assert rest[-1].finish_reason == "cancelled"
    assert bench.open_sequences() == 0
    done = stream.result()
    assert (done.text, done.token_ids, done.finish_reason) == ("abc", (3, 4, 5), "cancelled")


def test_what_was_held_back_comes_with_the_cancel(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abcdef")
    gate = Gate(bench.runner, 2)
    stream = TokenStream(engine.submit(request_of(stop="bz")))
    with gate:
        next(stream)
        stream.cancel()
    assert [chunk.text for chunk in stream] == ["", "b"]
    assert stream.result().text == "ab"


def test_cancel_with_the_last_token_changes_nothing(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="ab")
    handle = engine.submit(request_of())
    bench.runner.after = lambda number: handle.cancel() if number == 3 else None
    stream = TokenStream(handle)
    assert [chunk.finish_reason for chunk in stream] == [None, None, "stop"]
    assert stream.result().finish_reason == "stop"


def test_cancel_during_the_prompt(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_step_tokens=8)
    gate = Gate(bench.runner, 2)
    handle = engine.submit(request_of([5] * 100))
    with gate:
        handle.cancel()
    done = handle.result()
    assert (done.token_ids, done.finish_reason) == ((), "cancelled")
    assert len(bench.runner.steps) == 2
    assert bench.open_sequences() == 0


def test_cancel_before_the_start(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1)
    gate = Gate(bench.runner, 1)
    first, second = (engine.submit(request_of([5 + i], max_tokens=3)) for i in range(2))
    with gate:
        second.cancel()
    assert second.result().finish_reason == "cancelled"
    assert first.result().finish_reason == "length"
    assert len(bench.runner.steps) == 3


def test_dropping_a_stream_frees_its_memory(bench: Bench, request_of: Ask) -> None:
    stream = TokenStream(
        bench.engine(max_context=10**6, kv_tokens=10**7).submit(request_of(max_tokens=10**6))
    )
    next(stream)
    assert bench.open_sequences() == 1
    del stream
    gc.collect()
    assert bench.open_sequences() == 0


def test_leaving_the_with_block_ends_the_stream(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_context=10**6, kv_tokens=10**7)
    with TokenStream(engine.submit(request_of(max_tokens=10**6))) as stream:
        next(stream)
        assert "not at its end" in repr(stream)
    assert bench.open_sequences() == 0
    assert stream.result().finish_reason == "cancelled"


def test_threads_share_the_chunks_of_one_stream(bench: Bench, request_of: Ask) -> None:
    stream = TokenStream(bench.engine(max_context=1000).submit(request_of(max_tokens=900)))
    taken: list[int] = []

    def read() -> None:
        for chunk in stream:
            taken.extend(chunk.token_ids)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(stream.result().token_ids)


def test_a_result_is_waited_for_as_long_as_one_likes(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="ab")
    gate = Gate(bench.runner, 2)
    handle = engine.submit(request_of())
    with gate, pytest.raises(DeadlineError, match=r"no result within 0\.01 s"):
        handle.result(timeout=0.01)
    assert handle.result(timeout=20).text == "ab"


def test_a_request_ends_with_its_deadline(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1)
    gate = Gate(bench.runner, 2)
    late = [engine.submit(request_of([5 + i], deadline=0.0)) for i in range(2)]
    good = engine.submit(request_of([9], max_tokens=3))
    with gate:
        pass
    for handle in late:
        with pytest.raises(DeadlineError, match="longer than its timeout"):
            handle.result()
    assert good.result().finish_reason == "length"
    assert bench.open_sequences() == 0


def test_a_failure_between_two_looks_is_no_end(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine(reply="abcdef")
    gate = Gate(bench.runner, 1)
    handle = engine.submit(request_of())
    look = RequestHandle.take

    def take(self: RequestHandle[Writer]) -> Chunk | None:
        chunk = look(self)
        self.writers[0].fail(DeadlineError("late"))
        return chunk

    monkeypatch.setattr(RequestHandle, "take", take)
    with gate, pytest.raises(DeadlineError, match="late"):
        next(handle)
    assert not handle.exhausted


def test_a_decoder_that_fails_at_the_cancel_ends_its_request_alone(
    bench: Bench, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine(reply="abcdef")
    gate = Gate(bench.runner, 2)
    handle, other = engine.submit(request_of(stop="bz")), engine.submit(request_of())
    with gate:
        monkeypatch.setattr(handle.writers[0].output, "publish", lambda reason=None: 1 // (not reason))
        handle.cancel()
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        handle.result()
    assert other.result().text == "abcdef"
