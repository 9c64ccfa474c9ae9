from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ernie_accel.stop import TextTail


class Pieces:
    """Token i is the i-th piece."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return ""


def run(pieces: list[str], stop: list[str]) -> tuple[list[str], bool]:
    tail = TextTail(Pieces(pieces), stop)
    shown = []
    for index in range(len(pieces)):
        shown.append(tail.push(index))
        if tail.stopped:
            break
    return [*shown, tail.flush()], tail.stopped


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    shown, stopped = run(["Hello", " wo", "rl", "d"], [" world"])
    assert shown == ["Hello", "", "", "", ""]
    assert stopped


def test_held_text_comes_when_the_match_fails() -> None:
    shown, stopped = run(["ab", "ab", "x"], ["abc"])
    assert shown == ["", "ab", "abx", ""]
    assert not stopped


def test_the_rest_comes_at_the_end() -> None:
    assert run(["x", "ab"], ["abc"]) == (["x", "", "ab"], False)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert run(["abcd"], ["abcd", "bc"]) == (["a", ""], True)
    assert run(["ab", "cd"], ["abcd", "bc"]) == (["", "a", ""], True)


def test_of_two_complete_at_once_the_longer_wins() -> None:
    assert run(["xabc"], ["bc", "abc"]) == (["x", ""], True)


def test_nothing_comes_after_the_stop_string() -> None:
    tail = TextTail(Pieces(["a.", "b"]), ["."])
    assert tail.push(0) == "a"
    assert tail.push(1) == ""
    assert tail.flush() == ""


def test_without_a_decoder_there_is_no_text() -> None:
    tail = TextTail(None, ["a"])
    assert (tail.push(0), tail.flush(), tail.stopped) == ("", "", False)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_cut_does_not_depend_on_token_borders(pieces: list[str], stop: list[str]) -> None:
    whole, letters = "".join(pieces), list("".join(pieces))
    assert "".join(run(pieces, stop)[0]) == "".join(run(letters, stop)[0])
    assert run(pieces, stop)[1] == any(word in whole for word in stop)
