"""What is asked for: random prompts, lengths of outputs, and when they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROMPT, OUTPUT = 128, 64
"""Tokens, on average."""

VOCABULARY = 90_000
"""Ids of the ordinary part of the vocabulary."""


@dataclass(frozen=True)
class Item:
    """One request: a prompt, and how many tokens are to follow."""

    prompt: tuple[int, ...]
    tokens: int


def items(kind: str, count: int, seed: int) -> list[Item]:
    """Return so many requests, the same for the same seed.

    ``even``: every prompt has 128 tokens and gets 64. ``mixed``: prompts from 16 to 240, evenly distributed, and
    outputs whose lengths fall off exponentially from 8 on, up to 256; they are 128 and about 64 on average.
    """
    draw = np.random.default_rng(seed)
    if kind == "even":
        lengths = [(PROMPT, OUTPUT)] * count
    else:
        prompts = draw.integers(16, 2 * PROMPT - 16, count, endpoint=True)
        outputs = np.minimum(8 + draw.exponential(OUTPUT - 6, count), 4 * OUTPUT).astype(int)
        lengths = list(zip(prompts.tolist(), outputs.tolist(), strict=True))
    return [Item(tuple(draw.integers(3, VOCABULARY, prompt).tolist()), tokens) for prompt, tokens in lengths]


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return when requests come, seconds from the start, ``rate`` a second on average: a Poisson process."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    times: list[float] = np.cumsum(gaps).tolist()
    return times


def generated(work: Sequence[Item]) -> int:
    """Return how many tokens are written."""
    return sum(item.tokens for item in work)


def computed(work: Sequence[Item]) -> int:
    """Return how many tokens go through the model: of each request all but the last that it draws."""
    return sum(len(item.prompt) + item.tokens - 1 for item in work)
