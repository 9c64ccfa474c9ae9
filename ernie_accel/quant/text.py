"""Ids to calibrate on: the text that ships with the package, the user's, or random ids where there is no tokenizer."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from operator import index

import numpy as np

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.errors import ArgumentError, TokenizerError
from ernie_accel.quant.recipe import Recipe
from ernie_accel.tokenizer import Tokenizer

__all__ = [
    "CalibrationIds",
    "built_in_ids",
    "built_in_texts",
    "ids_of_sequences",
    "ids_of_texts",
    "whole_numbers",
]

Ids = tuple[int, ...]

SPELT = 0.6
"""Ids for each byte from which on a vocabulary is held to spell a text: ordinary text has 0.2 to 0.4."""


@dataclass(frozen=True)
class CalibrationIds:
    """What to calibrate on.

    Attributes:
        sequences: Ids, none longer than the recipe's sequences nor the model's context.
        description: For ``Recipe.describe``: "8,192 tokens of ...".
    """

    sequences: tuple[Ids, ...]
    description: str


def built_in_texts() -> list[str]:
    """Return the documents that ship with the package: English and Chinese by turns."""
    packed = (resources.files("ernie_accel.quant") / "data" / "text.jsonl.xz").read_bytes()
    return [json.loads(line)["text"] for line in lzma.decompress(packed).decode().splitlines()]


def built_in_ids(config: ModelConfig, tokenizer: Tokenizer | None, recipe: Recipe) -> CalibrationIds:
    """Return the recipe's number of tokens of the built-in text, or uniformly random ids without a tokenizer.

    Documents that the vocabulary has no words for, only bytes, say nothing about the model and are left out.
    """
    if tokenizer is None:
        words = np.random.Philox(key=0).random_raw(recipe.tokens) % np.uint64(config.vocab_size)
        return _cut([words.tolist()], config, recipe, "random ids")
    encoded = [(text, tokenizer.encode(text, add_bos=True)) for text in built_in_texts()]
    known = [ids for text, ids in encoded if len(ids) < SPELT * len(text.encode())]
    return _cut(known or [ids for _, ids in encoded], config, recipe, "the built-in text")


def ids_of_texts(
    texts: Iterable[str], config: ModelConfig, tokenizer: Tokenizer | None, recipe: Recipe
) -> CalibrationIds:
    """Return the first tokens of the user's texts, as many as the recipe wants.

    Raises:
        TokenizerError: The checkpoint has no tokenizer.
        ArgumentError: There is no text.
    """
    if tokenizer is None:
        raise TokenizerError(
            "calibration with texts needs a tokenizer, and the checkpoint has neither tokenizer.model nor "
            "tokenizer.json; give sequences of ids"
        )
    if isinstance(texts, str):
        texts = [texts]
    return _cut(
        (tokenizer.encode(text, add_bos=True) for text in texts), config, recipe, "text of the user's"
    )


def ids_of_sequences(
    sequences: Iterable[Sequence[int]], config: ModelConfig, recipe: Recipe
) -> CalibrationIds:
    """Return the first of the user's own ids, as many as the recipe wants.

    Raises:
        ArgumentError: There is none, or one is no whole number.
    """
    return _cut(map(whole_numbers, sequences), config, recipe, "ids of the user's")


def whole_numbers(ids: Sequence[int]) -> list[int]:
    """Return ids as plain integers. Raises ArgumentError on others: NumPy would cut 1.5 to 1 and read "7" as 7."""
    return [_whole_number(token) for token in ids]


def _whole_number(token: object) -> int:
    if not isinstance(token, bool):
        with suppress(TypeError):
            return index(token)  # type: ignore[arg-type]
    raise ArgumentError(f"calibration holds the id {token!r:.80}: must be a whole number")


def _cut(
    documents: Iterable[Sequence[int]], config: ModelConfig, recipe: Recipe, source: str
) -> CalibrationIds:
    """Lay documents end to end and cut them into sequences of one length; the last may be shorter."""
    flat: list[int] = []
    for ids in documents:
        flat += ids
        if len(flat) >= recipe.tokens:
            break
    if not flat:
        raise ArgumentError("calibration: the text given is empty; give at least one token")
    del flat[recipe.tokens :]
    length = min(recipe.sequence, config.max_position_embeddings)
    sequences = tuple(tuple(flat[at : at + length]) for at in range(0, len(flat), length))
    return CalibrationIds(sequences, f"{len(flat):,} tokens of {source}")
