"""Held-out texts: WikiText-2 for SmolLM2, poems for the poet, and English passages whose last word is asked for."""

from __future__ import annotations

import json
import lzma
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ernie_accel.tokenizer import Tokenizer

DATA = Path(__file__).parents[3] / "shared/data"
"""Where the texts lie unless --data says otherwise: beside the repository."""

WIKITEXT = "wikitext-2-raw/wiki.test.raw.xz"
POEMS = "chinese-poetry/valid.jsonl.xz"

CONTEXT_WORDS = (40, 60)
"""Fewest and most words of context."""

WORD_LETTERS = 4

_HEADING = re.compile(r"^ =+ .* =+ $")
_SPACED = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([,.;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£]) "), r"\1"),
    (re.compile(r' " ([^"]*) "'), r' "\1"'),
    (re.compile(r" '(s|t|re|ve|ll|d|m)\b"), r"'\1"),
)
_SENTENCE = re.compile(r"[a-z)\"] ?(\.) (?=[A-Z])|(\.)$")
_WORD = re.compile(r"[\w'-]+")
_LAST_WORD = re.compile(r"^(.*\s)([A-Za-z]+)$", re.DOTALL)


@dataclass(frozen=True)
class Passage:
    """A context and the word that ends its last sentence."""

    context: str
    word: str


def read(path: Path) -> str:
    """The text of an .xz file."""
    return lzma.open(path, "rt", encoding="utf-8").read()


def wikitext_windows(data: Path, tokenizer: Tokenizer, count: int, width: int) -> list[list[int]]:
    """``count`` windows of ``width`` tokens at even distances over the test split; fewer if it has no more."""
    ids = tokenizer.encode(read(data / WIKITEXT))
    count = min(count, len(ids) // width)
    starts = [i * (len(ids) - width) // max(1, count - 1) for i in range(count)]
    return [list(ids[start : start + width]) for start in starts]


def poems(data: Path, tokenizer: Tokenizer, count: int | None = None) -> list[list[int]]:
    """Held-out poems, each after the token that begins a text; ``count`` of them, drawn with seed 0, or all."""
    texts = [json.loads(line)["text"] for line in read(data / POEMS).splitlines()]
    if count is not None and count < len(texts):
        texts = random.Random(0).sample(texts, count)
    return [list(tokenizer.encode(text, add_bos=True)) for text in texts]


def passages(data: Path, count: int) -> list[Passage]:
    """English passages in the manner of LAMBADA (Paperno et al. 2016), spread evenly over WikiText-2's test split.

    Each ends before the last word of a sentence and has the 40 to 60 words before it, of this paragraph and the one
    before. The word has at least four letters and stands in the context already, so that a reader of the
    whole context can guess it. The choice looks at the text alone, never at a model.
    """
    found: list[Passage] = []
    before = ""
    for line in read(data / WIKITEXT).splitlines():
        if _HEADING.match(line):
            before = ""
            continue
        text = plain(line)
        found += _passages_of(before, text)
        before = text + "\n"
    if len(found) < count:
        raise SystemExit(f"error: the text has {len(found)} passages, fewer than {count}")
    return [found[i * len(found) // count] for i in range(count)]


def _passages_of(before: str, text: str) -> Iterator[Passage]:
    fewest, most = CONTEXT_WORDS
    for end in _SENTENCE.finditer(text):
        match = _LAST_WORD.match(before + text[: end.start(end.lastindex or 0)])
        if match is None:
            continue
        words = list(_WORD.finditer(match[1]))[-most:]
        word = match[2]
        if len(words) >= fewest and len(word) >= WORD_LETTERS and word in (w[0] for w in words):
            yield Passage(match[1][words[0].start() :].rstrip(), word)


def plain(line: str) -> str:
    """WikiText's spaced tokens as ordinary writing."""
    text = line
    for pattern, with_ in _SPACED:
        text = pattern.sub(with_, text)
    return text.strip()


def total(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of all."""
    return sum(map(len, sequences))
