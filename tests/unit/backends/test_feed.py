"""A completion that comes in pieces from somewhere else, and what is counted of it."""

from __future__ import annotations

from ernie_accel.backends.engine import Request
from ernie_accel.backends.feed import Feed, Piece, Tally
from ernie_accel.types import SamplingParams


def test_a_request_counts_once_however_many_completions_it_has() -> None:
    tally = Tally()
    request = Request(token_ids=(5, 6), params=SamplingParams(n=3), stop_ids=frozenset(), arrival=0.0)
    first, second, third = (Feed(request, index, tally, index) for index in range(3))
    for feed in (first, second, third):
        feed.start()
        feed.add(Piece(text="a", token_ids=(7,)))
    first.add(Piece(text="b", token_ids=(8,), finish_reason="length"))
    second.add(Piece(finish_reason="stop"))
    third.cancel()
    metrics = tally.snapshot({})
    ended = {name: n for name, n in metrics.counters.items() if name.startswith("requests_")}
    assert ended == {
        "requests_stop": 0,
        "requests_length": 1,
        "requests_cancelled": 0,
        "requests_failed": 0,
    }
    assert metrics.counters["alternatives"] == 2
    assert metrics.counters["generated_tokens"] == 4
    assert metrics.histograms["request_seconds"].count == 1
    assert metrics.histograms["queue_seconds"].count == 1
    assert metrics.histograms["time_to_first_token_seconds"].count == 3
