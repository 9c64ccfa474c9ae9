from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ernie_accel.engine.request import Request
from ernie_accel.engine.stream import TokenStream
from ernie_accel.errors import CapacityError
from ernie_accel.types import Score
from tests.unit.engine.conftest import Gate

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]


def texts(stream: TokenStream) -> str:
    return "".join(chunk.text for chunk in stream)


def test_logits_in_chunks_are_all_rows(bench: Bench, request_of: Ask) -> None:
    ids = [3 + i % 50 for i in range(40)]
    whole = bench.engine().logits(ids)
    assert whole.shape == (40, 64)
    assert whole.dtype == np.float32
    engine = bench.engine(max_step_tokens=7)
    assert np.array_equal(engine.logits(ids), whole)
    assert len(bench.runner.steps) == 6
    assert bench.runner.open_sequences == 0
    assert np.array_equal(engine.logits(ids[:1]), whole[:1])


def test_logits_that_no_memory_holds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    engine = bench.engine()
    monkeypatch.setattr("ernie_accel.engine.reader.np.empty", full)
    with pytest.raises(CapacityError, match="the logits of 3 tokens take 768 bytes"):
        engine.logits([5, 6, 7])


def test_score_is_the_log_softmax_of_what_follows(bench: Bench) -> None:
    engine = bench.engine(certainty=0.1, max_step_tokens=3)
    ids = [3, 9, 4, 4, 20]
    logits = engine.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    (score,) = engine.score([ids])
    assert score.logprobs[0] is None
    assert score.logprobs[1:] == pytest.approx([logprobs[i, ids[i + 1]] for i in range(4)])
    assert engine.score([[5], ids]) == [Score(token_ids=(5,), logprobs=(None,)), score]


def test_reading_survives_interrupts_of_others_and_a_lack_of_memory(bench: Bench, request_of: Ask) -> None:
    ids = [3 + i % 50 for i in range(30)]
    expected = bench.engine().logits(ids)
    engine = bench.engine(max_step_tokens=8, kv_tokens=40)
    stream = TokenStream(engine.submit(request_of([5] * 8, max_tokens=30, end=False)))
    next(stream)
    assert np.array_equal(engine.logits(ids), expected)
    assert len(texts(stream)) == 29


def test_a_long_list_does_not_hold_up_who_comes_later(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_sequences=1)
    gate = Gate(bench.runner, 1)
    scores: list[Score] = []
    reading = threading.Thread(target=lambda: scores.extend(engine.score([[5, 6]] * 600)))
    reading.start()
    with gate:
        handle = engine.submit(request_of([60], max_tokens=1))
    handle.result()
    reading.join()
    began = next(number for number, batch in enumerate(bench.runner.steps) if batch[0].token_ids[0] == 60)
    assert began < 300
    assert len(set(scores)) == 1 < len(scores) == 600
