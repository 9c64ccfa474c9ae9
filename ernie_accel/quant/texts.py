"""The ``calibration`` argument of ``ernie_accel.quantize``: what to fit to, and what to judge by."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.errors import ArgumentError
from ernie_accel.quant.recipe import Recipe
from ernie_accel.quant.text import CalibrationIds, built_in_ids, ids_of_sequences, ids_of_texts
from ernie_accel.tokenizer import Tokenizer

__all__ = ["Calibration", "Split", "split_ids"]

Calibration = str | os.PathLike[str] | Sequence[str] | Sequence[Sequence[int]]
"""Path of a text or JSON-lines file, texts, or sequences of token ids."""

LEAST = 64
"""Tokens below which a text says too little of a model's inputs to fit anything to them."""

HELD_OUT = 4096
"""Tokens that are kept for judging, where the text has so many more than the recipe wants; else a tenth of it."""


@dataclass(frozen=True)
class Split:
    """Ids to calibrate on, and ids of the same text that calibration does not see."""

    calibration: CalibrationIds
    held_out: tuple[tuple[int, ...], ...]
    held_out_description: str


def split_ids(
    calibration: Calibration | None, config: ModelConfig, tokenizer: Tokenizer | None, recipe: Recipe
) -> Split:
    """Read what the user gave, or the built-in text.

    Raises:
        ArgumentError: It is of another kind, or has fewer than ``LEAST`` tokens.
        TokenizerError: It is text and the checkpoint has no tokenizer.
    """
    more = replace(recipe, tokens=recipe.tokens + HELD_OUT)
    if calibration is None:
        whole = built_in_ids(config, tokenizer, more)
    elif isinstance(calibration, (str, os.PathLike)):
        whole = ids_of_texts(_read_texts(Path(calibration)), config, tokenizer, more)
    else:
        whole = _given(calibration, config, tokenizer, more)
    count = sum(map(len, whole.sequences))
    if calibration is not None and count < LEAST:
        raise ArgumentError(
            f"calibration: holds {count} tokens and must hold at least {LEAST}; {recipe.tokens:,} of the kind of text "
            "that the model will see are best"
        )
    return _split(whole, recipe)


def _given(
    calibration: Sequence[str] | Sequence[Sequence[int]],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    recipe: Recipe,
) -> CalibrationIds:
    items: list[Any] = list(calibration) if isinstance(calibration, Iterable) else [None]
    texts = [item for item in items if isinstance(item, str)]
    if texts and len(texts) == len(items):
        return ids_of_texts(texts, config, tokenizer, recipe)
    sequences: list[Any] = [
        item
        for item in items
        if isinstance(item, (Sequence, np.ndarray)) and not isinstance(item, (str, bytes))
    ]
    if not items or len(sequences) < len(items):
        raise ArgumentError(
            "calibration: must be the path of a file, a list of texts, or a list of lists of ids"
        )
    return ids_of_sequences(sequences, config, recipe)


def _read_texts(path: Path) -> list[str]:
    """Texts of a file: one for each line of ``.jsonl`` (a string, or its ``"text"``), else the whole file as one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no path
        raise ArgumentError(
            f"calibration={str(path)!r}: cannot be read as a text file in UTF-8: {error}"
        ) from error
    if path.suffix != ".jsonl":
        return [text]
    return [
        _line_text(line, f"{path}: line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _line_text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ArgumentError(f"calibration: {where}: is no JSON: {error}") from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ArgumentError(f'calibration: {where}: must be a string or an object with "text"')
    return text


def _split(whole: CalibrationIds, recipe: Recipe) -> Split:
    flat = [token for sequence in whole.sequences for token in sequence]
    kept = min(HELD_OUT, len(flat) // 10) if len(flat) < recipe.tokens + HELD_OUT else HELD_OUT
    length = len(whole.sequences[0])
    first, last = flat[: len(flat) - kept], flat[len(flat) - kept :]
    _, _, origin = whole.description.partition(" tokens of ")
    return Split(
        CalibrationIds(_cut(first, length), f"{len(first):,} tokens of {origin}"), _cut(last, length), origin
    )


def _cut(flat: list[int], length: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(flat[at : at + length]) for at in range(0, len(flat), length))
