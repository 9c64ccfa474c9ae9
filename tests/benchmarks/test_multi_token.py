"""What the benchmark of multi-token prediction works out from its measurements."""

from __future__ import annotations

import pytest

from benchmarks.multi_token import needed, row, whole


def test_a_line_through_two_cuts_gives_the_whole_shape() -> None:
    few = {"one": 10.0, "two": 14.0, "apart": 15.0, "draft": 3.0}
    many = {"one": 14.0, "two": 22.0, "apart": 25.0, "draft": 5.0}
    assert whole(few, many, (2, 4)) == {"one": 62.0, "two": 118.0, "apart": 145.0, "draft": 4.0}


def test_drafts_pay_where_their_tokens_come_faster_than_steps() -> None:
    times = {"one": 10.0, "two": 12.0, "apart": 14.0, "draft": 1.0}
    share = needed(times)
    assert share == pytest.approx(0.3)
    assert (1 + share) / (times["two"] + times["draft"]) == pytest.approx(1 / times["one"])
    assert row("4", 1, times) == "| 4 | 1 | 10.0 | 12.0 | 14.0 | 1.0 | 0.10 | 0.30 | 0.50 |"
