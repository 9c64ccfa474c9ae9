"""Named workloads: the same numbers for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ernie_accel.errors import ArgumentError

__all__ = ["Workload", "prompts", "workloads"]

FEW_STEPS, MANY_STEPS = 32, 64
LONG_CONTEXT = 512
"""From this context on a decoding round takes few steps, so that the context stays about what it is called."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Random prompts and what is timed of them.

    Attributes:
        measures: ``"prefill"``: one prompt, until its first token is chosen; ``"decode"``: greedy tokens after it;
            ``"request"``: a prompt and ``steps`` greedy tokens, as a caller waits for them.
        context: Tokens of each prompt.
        batch: Sequences that are decoded together.
        steps: Tokens that a round adds to each sequence.
    """

    measures: Literal["prefill", "decode", "request"]
    context: int
    batch: int = 1
    steps: int = 1

    def __post_init__(self) -> None:
        for name in ("context", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.measures not in ("prefill", "decode", "request"):
            raise ArgumentError(f"measures={self.measures!r}: must be 'prefill', 'decode' or 'request'")

    @property
    def name(self) -> str:
        """Short and fit for a file name: ``prefill-512``, ``decode-32``, ``decode-32x16``, ``request-512-64``."""
        steps = f"-{self.steps}" if self.measures == "request" else ""
        return f"{self.measures}-{self.context}{steps}" + (f"x{self.batch}" if self.batch > 1 else "")

    @property
    def tokens(self) -> int:
        """Tokens that count in one round, all sequences together: of a request the new ones."""
        return self.context if self.measures == "prefill" else self.batch * self.steps

    @property
    def goes_on(self) -> bool:
        """Whether a decoding round begins where the one before ended: reading a long prompt anew would take minutes."""
        return self.measures == "decode" and self.context >= LONG_CONTEXT

    def room(self, rounds: int) -> int:
        """Tokens that each sequence may have to hold beyond its prompt, with some to warm up and to look at."""
        return (rounds + 1) * (self.steps + 2)

    def rate(self, seconds: float) -> float:
        """Tokens per second of a round, all sequences together."""
        return self.tokens / seconds

    def seconds(self, rate: float) -> float:
        """What a round took that gave so many tokens per second."""
        return self.tokens / rate


def workloads(
    prefill: Sequence[int], decode: Sequence[int], batch: Sequence[int], request: Sequence[int] = ()
) -> list[Workload]:
    """Return one workload for each length of a request's prompt and of a prompt, and for each context and batch."""
    whole = [Workload(measures="request", context=length, steps=MANY_STEPS) for length in request]
    reading = [Workload(measures="prefill", context=length) for length in prefill]
    writing = [
        Workload(
            measures="decode",
            context=context,
            batch=size,
            steps=MANY_STEPS if context < LONG_CONTEXT and size == 1 else FEW_STEPS,
        )
        for context in decode
        for size in batch
    ]
    return whole + reading + writing


def prompts(workload: Workload, vocab_size: int) -> list[list[int]]:
    """Return the token ids of each sequence's prompt: random, different, and the same at every call."""
    draw = np.random.default_rng(0)
    return [draw.integers(3, vocab_size, workload.context).tolist() for _ in range(workload.batch)]
