"""What the faces and an engine exchange: ``Request`` in, ``Handle`` out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import RunnerInfo, StepProfile
from ernie_accel.errors import ArgumentError
from ernie_accel.types import Chunk, Completion, SamplingParams, Score

__all__ = ["Engine", "Handle", "Request", "alternative_seed", "check_ids"]

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: neighbours lie far apart


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue.

    Attributes:
        token_ids: The prompt, at least one id.
        params: No field is None here: defaults and seed are settled.
        stop_ids: Ids that end the generation, the checkpoint's end tokens among them unless they are ignored.
        arrival: When the caller asked, ``time.perf_counter()``.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    arrival: float = field(default_factory=time.perf_counter)


class Handle(Protocol):
    """A request under way. Dropping it cancels the request and frees its memory."""

    def __next__(self) -> Chunk:
        """Wait for the next piece; StopIteration after the one with a finish reason."""
        ...

    def result(self) -> Completion:
        """Wait for the end and return the whole."""
        ...

    def cancel(self) -> None:
        """End the request within one step; what it has so far stays its result."""
        ...


class Engine(Protocol):
    """Works on whole requests, from any number of threads. ``close`` may be called twice."""

    @property
    def info(self) -> RunnerInfo:
        """Fixed properties of what computes."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do beyond the least; unknown names are ignored."""
        ...

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises ContextLengthError if its prompt is longer than the context."""
        ...

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return raw logits, float32 [T, vocab_size]: row i is what the model expects after ``token_ids[: i + 1]``."""
        ...

    def score(self, token_ids: Sequence[int]) -> Score:
        """Return the log-probability of each id given those before it."""
        ...

    def profile(self, on: bool) -> StepProfile:
        """Begin or end counting where time goes; return what was counted. Raises UnsupportedError if nothing counts."""
        ...

    def close(self) -> None:
        """End everything that is under way with ClosedError and give all memory back."""
        ...


def alternative_seed(seed: int, index: int) -> int:
    """Return the seed of alternative ``index``: ``(seed + index * 0x9E3779B97F4A7C15) mod 2**64``.

    The first has the request's own seed, so it is what ``n=1`` gives; and each, asked for alone with the seed that its
    Completion records, comes again.
    """
    return (seed + index * _GOLDEN) % 2**64


def check_ids(token_ids: Sequence[int] | npt.NDArray[np.integer], vocab_size: int) -> tuple[int, ...]:
    """Return the ids as plain ints. Raises ArgumentError, naming position and id, for any outside [0, vocab_size)."""
    flat = token_ids.ndim == 1 if isinstance(token_ids, np.ndarray) else isinstance(token_ids, Sequence)
    if not flat or isinstance(token_ids, (str, bytes, bytearray)):
        raise ArgumentError(f"token_ids={token_ids!r}: must be a list of token ids, or a flat array of them")
    if len(token_ids) == 0:
        raise ArgumentError(
            "the prompt is empty: give at least one token; [tokenizer.bos_id] begins a new text"
        )
    for position, value in enumerate(token_ids):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < vocab_size:
            raise ArgumentError(
                f"token_ids[{position}]={value!r}: must be a whole number from 0 to {vocab_size - 1}"
            )
    return tuple(int(value) for value in token_ids)
