"""Passages and the word that ends them."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from benchmarks.accuracy import texts
from benchmarks.accuracy.last_words import spells

FILLER = " ".join(["one two three four five six seven eight nine ten"] * 5)


def write(folder: Path, *lines: str) -> Path:
    path = folder / texts.WIKITEXT
    path.parent.mkdir(parents=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(f" {line} \n" for line in lines))
    return folder


def test_a_passage_ends_before_the_last_word_of_a_sentence(tmp_path: Path) -> None:
    data = write(
        tmp_path, f"{FILLER} , a harbour , an old @-@ fashioned inn . He left the harbour . Then nobody came"
    )
    (passage,) = texts.passages(data, 1)
    assert passage.word == "harbour"
    assert passage.context.endswith("ten, a harbour, an old-fashioned inn. He left the")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"{FILLER} and then he saw it . The end", "the word is short"),
        (f"{FILLER} and then he saw a castle . The end", "the word is new"),
        (f"{FILLER} in 1942 as in 1942 . The end", "it is a number"),
        ("He left the harbour for the harbour . The end", "too little context"),
    ],
)
def test_other_sentences_are_left_out(tmp_path: Path, line: str, why: str) -> None:
    data = write(tmp_path, line)
    with pytest.raises(SystemExit, match="0 passages"):
        texts.passages(data, 1)


def test_the_paragraph_before_belongs_to_the_context_unless_a_heading_parts_them(tmp_path: Path) -> None:
    end = "He went to the seven . The end"
    assert texts.passages(write(tmp_path / "a", FILLER, end), 1)[0].word == "seven"
    with pytest.raises(SystemExit, match="0 passages"):
        texts.passages(write(tmp_path / "b", FILLER, "= Heading =", end), 1)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" harbour.", True),
        (" harbour", True),
        (" harbours", False),
        (" harbour-side", False),
        ("harbour", False),
        (" the harbour", False),
        ("", False),
    ],
)
def test_the_first_word_must_be_the_whole_word(text: str, right: bool) -> None:
    assert spells(text, "harbour") is right
