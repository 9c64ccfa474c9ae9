"""How often greedy decoding writes the last word of a passage."""

from __future__ import annotations

import re
from collections.abc import Sequence

import ernie_accel as ea

from .texts import Passage

_FIRST_WORD = re.compile(r"\s+([\w'-]+)")
BATCH = 64


def right(model: ea.Model, passages: Sequence[Passage]) -> list[bool]:
    """For each passage, whether the first word that the model writes is exactly the one that stands there.

    Enough tokens are asked for that a longer word shows itself.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None, "the checkpoint comes with a tokenizer"
    found: list[bool] = []
    for first in range(0, len(passages), BATCH):
        part = passages[first : first + BATCH]
        most = max(len(tokenizer.encode(f" {passage.word}")) for passage in part)
        prompts = [tokenizer.encode(passage.context) for passage in part]
        replies = model.generate(prompts, max_tokens=most + 1, temperature=0.0)
        found += [spells(reply.text, passage.word) for reply, passage in zip(replies, part, strict=True)]
    return found


def spells(text: str, word: str) -> bool:
    """Whether a text begins with exactly this word."""
    match = _FIRST_WORD.match(text)
    return match is not None and match[1] == word
