from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_accel.errors import ArgumentError
from ernie_accel.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["  two spaces ", " lead", "trail \n\n", "\n", "床前明月光，😈", "1234 15 5,61", "a\tb", "\0", ""]
text_without_escape = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=40)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_exactly(ernie: Tokenizer, text: str) -> None:
    assert ernie.decode(ernie.encode(text)) == text


@given(text=text_without_escape)
def test_any_text_survives_exactly(ernie: Tokenizer, text: str) -> None:
    assert ernie.decode(ernie.encode(text)) == text


def test_the_sentencepiece_space_reads_as_a_space(ernie: Tokenizer) -> None:
    assert ernie.encode("a\u2581b") == ernie.encode("a b")


def test_no_tokens_are_added(ernie: Tokenizer) -> None:
    assert ernie.encode("") == []
    assert ernie.token_text(ernie.encode("Hello")[0])[0] == "H"


def test_digits_are_single(ernie: Tokenizer) -> None:
    assert ernie.encode("1234") == [4, 5, 6, 7]


def test_line_breaks_and_emoji_are_bytes(ernie: Tokenizer) -> None:
    assert ernie.encode("\n") == [13 + 0x0A]
    assert ernie.encode("\U0001f608") == [13 + byte for byte in "\U0001f608".encode()]


def test_begin_is_added_when_asked(ernie: Tokenizer) -> None:
    assert ernie.encode("Hello", add_bos=True) == [1, *ernie.encode("Hello")]


def test_begin_that_does_not_exist(trained: Callable[..., Tokenizer]) -> None:
    tokenizer = trained(bos_id=-1)
    assert tokenizer.bos_id is None
    with pytest.raises(ArgumentError, match="no begin-of-text"):
        tokenizer.encode("a", add_bos=True)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_only_strings_are_text(ernie: Tokenizer, text: object) -> None:
    with pytest.raises(ArgumentError, match="must be a string"):
        ernie.encode(text)  # type: ignore[arg-type]


def test_one_id_is_no_list_of_ids(ernie: Tokenizer) -> None:
    with pytest.raises(ArgumentError, match=r"ids=5: must be a list of token ids; \[5\] is one"):
        ernie.decode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("parse_special", [False, True])
def test_half_a_surrogate_pair_is_refused(ernie: Tokenizer, parse_special: bool) -> None:
    with pytest.raises(ArgumentError, match="index 2"):
        ernie.encode("ab\ud800", parse_special=parse_special)


def test_names_and_sizes(ernie: Tokenizer) -> None:
    assert (ernie.bos_id, ernie.pad_id) == (1, 0)
    assert ernie.vocab_size == len(ernie) == 513
    assert ernie.eos_ids == (2, ernie.id_of("<|end_of_sentence|>"))
    assert ernie.special_ids == {0, 1, 2, *range(507, 513)}
    assert "vocab_size=513" in repr(ernie)


def test_pieces_by_name(ernie: Tokenizer) -> None:
    assert ernie.id_of("</s>") == 2
    assert ernie.id_of("<|LOC_0|>") == 512
    assert ernie.id_of("<0x0A>") == 23
    assert ernie.id_of("no such piece") is None


def test_one_token_for_the_eye(ernie: Tokenizer) -> None:
    assert ernie.token_text(2) == "</s>"
    assert ernie.token_text(13 + 0xE4) == "<0xE4>"
    assert ernie.token_text(23) == "\n"
    assert ernie.token_text(ernie.encode(" ")[0]) == " "
    assert ernie.token_bytes(13 + 0xE4) == b"\xe4"
    assert ernie.token_bytes(2) == b""


def test_many_threads_get_the_same(ernie_directory: Path) -> None:
    tokenizer = load_tokenizer(ernie_directory)
    assert tokenizer is not None
    texts = [f"{text} {i} </s><|im_start|>" for i, text in enumerate(TEXTS * 4)]

    def work(text: str) -> tuple[list[int], str, list[int]]:
        ids = tokenizer.encode(text)
        return ids, tokenizer.decode(ids), tokenizer.encode_chat([{"role": "user", "content": text}])

    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(work, texts))
    assert parallel == [work(text) for text in texts]
    assert [decoded for _, decoded, _ in parallel] == texts
