"""Random requests, and what each of them gives when nothing else runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ernie_accel as ea
from ernie_accel.backends.mock import KV_BYTES_PER_TOKEN, MockOptions
from ernie_accel.engine.options import Speculation
from ernie_accel.testing import synthetic, tiny_config

VOCAB = 128
MOST_PROMPT, MOST_OUTPUT = 88, 24
ROOM = MOST_PROMPT + MOST_OUTPUT + 48
"""Tokens of KV memory in which every request fits alone, its pages rounded up, and no two long ones."""

Drawn = tuple[tuple[int, ...], Any, str]


@dataclass(frozen=True)
class Ask:
    """A request."""

    prompt: list[int]
    params: ea.SamplingParams


@dataclass(frozen=True)
class Alone:
    """What a request gives alone, each of its alternatives, and the readings of its prompt."""

    drawn: list[Drawn]
    logits: bytes
    score: ea.Score
    embedding: bytes


def load(kind: str, **options: Any) -> ea.Model:
    """Load a tiny model: ``mock``, or ``native`` with experts or without, or with multi-token prediction too."""
    if kind == "mock":
        checkpoint = synthetic(tiny_config(vocab_size=VOCAB))
        return ea.Model.load(
            checkpoint, backend="mock", backend_options=MockOptions(certainty=0.5), **options
        )
    layers = int(kind == "native-mtp")
    checkpoint = synthetic(
        tiny_config(moe=kind != "native", vocab_size=VOCAB, num_nextn_predict_layers=layers)
    )
    return ea.Model.load(checkpoint, backend="native", precision="int8", **options)


def guessing(kind: str) -> Speculation:
    """How a model of this kind guesses."""
    return "mtp" if kind == "native-mtp" else "lookup"


def kv_limit(kind: str, tokens: int) -> int:
    """Bytes of KV memory for so many tokens."""
    if kind == "mock":
        return KV_BYTES_PER_TOKEN * tokens
    with load(kind, memory_limit=1 << 20, engine=ea.EngineOptions(speculation=guessing(kind))) as model:
        gauges = model.metrics().gauges
        return (1 << 20) * tokens // (gauges["kv_free_tokens"] + gauges["kv_used_tokens"])


class Asking:
    """Draws requests. Some share a beginning, some repeat themselves."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._beginnings = [self._ids(length) for length in (16, 33, 48, 64)]

    def ask(self) -> Ask:
        """Return the next request."""
        draw = self._random
        prompt = list(draw.choice(self._beginnings)) if draw.random() < 0.6 else []
        if draw.random() < 0.3:
            piece = self._ids(draw.randint(2, 5))
            prompt += piece * draw.randint(2, 4)
        prompt += self._ids(draw.randint(1, 24))
        return Ask(prompt[:MOST_PROMPT], self._params())

    def _params(self) -> ea.SamplingParams:
        draw = self._random
        return ea.SamplingParams(
            max_tokens=draw.randint(1, MOST_OUTPUT),
            temperature=draw.choice((0.0, 0.7, 1.0, 1.5)),
            top_k=draw.choice((0, 5)),
            top_p=draw.choice((1.0, 0.9)),
            min_p=draw.choice((0.0, 0.05)),
            repetition_penalty=draw.choice((1.0, 1.0, 1.2)),
            frequency_penalty=draw.choice((0.0, 0.0, 0.3)),
            logprobs=draw.choice((0, 0, 2)),
            ignore_eos=draw.random() < 0.8,
            n=draw.choice((1, 1, 1, 2, 4)),
            seed=draw.randrange(1 << 40),
        )

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(3, VOCAB) for _ in range(count)]


@lru_cache(maxsize=4)
def asked(kind: str, seed: int, count: int) -> tuple[Sequence[Ask], Sequence[Alone]]:
    """Draw requests, and compute each on a model that does nothing else, keeps nothing and guesses nothing."""
    draw = Asking(seed)
    asks = [draw.ask() for _ in range(count)]
    with load(kind, engine=ea.EngineOptions(prefix_cache=False), max_batch=4) as model:
        expected = [
            Alone(
                drawn(model.generate(ask.prompt, ask.params)),
                model.logits(ask.prompt).tobytes(),
                model.score(ask.prompt),
                model.embed(ask.prompt).tobytes(),
            )
            for ask in asks
        ]
    return asks, expected


def drawn(completion: ea.Completion) -> list[Drawn]:
    """What a completion and its alternatives hold, without times."""
    return [
        (one.token_ids, one.logprobs, one.finish_reason) for one in (completion, *completion.alternatives)
    ]


def is_beginning(part: ea.Completion, whole: Sequence[Drawn]) -> bool:
    """Whether a cancelled completion holds beginnings of what its request gives alone, or all of it."""
    return all(
        reason == expected[2] and ids == expected[0]
        if reason != "cancelled"
        else ids == expected[0][: len(ids)]
        for (ids, _, reason), expected in zip(drawn(part), whole, strict=True)
    )
