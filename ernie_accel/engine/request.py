"""What the faces and an engine exchange: ``Request`` in, ``Handle`` out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ernie_accel.backends.base import RunnerInfo, StepProfile
from ernie_accel.engine.metrics import Metrics
from ernie_accel.engine.structured import Constraint
from ernie_accel.errors import ArgumentError, DeadlineError
from ernie_accel.reply import Reply
from ernie_accel.types import Chunk, Completion, SamplingParams, Score

__all__ = [
    "Engine",
    "Handle",
    "Request",
    "alternative_seed",
    "check_ids",
    "check_priority",
    "deadline_of",
    "late",
]

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: neighbours lie far apart


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue.

    Attributes:
        token_ids: The prompt, at least one id.
        params: No field is None here: defaults and seed are settled.
        stop_ids: Ids that end the generation, the checkpoint's end tokens among them unless they are ignored.
        arrival: When the caller asked, ``time.perf_counter()``.
        priority: Requests of a higher one are started first and keep their memory longest.
        deadline: ``time.monotonic()`` at which the request fails with DeadlineError; infinity means never.
        constraint: What the output is held to, at its beginning.
        parse: Divides an assistant's turn, given as ids and as text.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    arrival: float = field(default_factory=time.perf_counter)
    priority: int = 0
    deadline: float = math.inf
    constraint: Constraint | None = None
    parse: Callable[[Sequence[int], str], Reply] | None = None


class Handle(Protocol):
    """A request under way. Dropping it cancels the request and frees its memory."""

    def __iter__(self) -> Self:
        """The handle itself."""
        ...

    def __next__(self) -> Chunk:
        """Wait for the next piece; StopIteration after the one with a finish reason."""
        ...

    def take(self) -> Chunk | None:
        """Return the next piece if there is one now, else None; where the request failed, raise why."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether every piece was taken, the one with a finish reason included; a request that failed has none."""
        ...

    @property
    def done(self) -> bool:
        """Whether ``result`` would not have to wait."""
        ...

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the whole. Raises DeadlineError after ``timeout`` seconds; it goes on."""
        ...

    def notify(self, callback: Callable[[], object], *, done: bool = False) -> None:
        """Call back once, from any thread, when ``take`` may have news; with ``done``, when that may have changed.

        The callback may run in the thread that computes, so it should only wake somebody.
        """
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

    def submit(self, request: Request, *, block: bool = True) -> Handle:
        """Queue a request; wait where the queue is full.

        Raises:
            ContextLengthError: Its prompt is longer than the context.
            QueueFullError: The queue is full, and ``block`` is false.
        """
        ...

    def notify_room(self, request: Request, callback: Callable[[], object]) -> None:
        """Call back once, from any thread, when ``submit(request, block=False)`` may find room."""
        ...

    def submit_all(self, requests: Sequence[Request], *, block: bool = True) -> Sequence[Handle]:
        """Queue requests that begin together. Errors are those of ``submit``, and end all of them."""
        ...

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return raw logits, float32 [T, vocab_size]: row i is what the model expects after ``token_ids[: i + 1]``."""
        ...

    def score(self, texts: Sequence[Sequence[int]]) -> list[Score]:
        """Return for each text the log-probability of each id given those before it."""
        ...

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return float32 [n, hidden_size]: the mean hidden state of each text, of length 1."""
        ...

    def check(self, token_ids: Sequence[int]) -> None:
        """Raise ContextLengthError if a prompt is longer than the context, ClosedError if the engine was closed."""
        ...

    def profile(self, on: bool) -> StepProfile:
        """Begin or end counting where time goes; return what was counted. Raises UnsupportedError if nothing counts."""
        ...

    def metrics(self) -> Metrics:
        """Return what was counted so far, and the state now."""
        ...

    def clear_cache(self) -> None:
        """Free what ended requests have left in memory for later ones."""
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


def check_priority(priority: object) -> None:
    """Raise ArgumentError unless it is a whole number."""
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise ArgumentError(f"priority={priority!r}: must be a whole number; higher ones come first")


def deadline_of(timeout: float | None) -> float:
    """Return the ``time.monotonic()`` at which a timeout that begins now is over; infinity for None.

    Raises:
        ArgumentError: It is no number of seconds above 0.
    """
    if timeout is None:
        return math.inf
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
        raise ArgumentError(f"timeout={timeout!r}: must be None or a number of seconds above 0")
    return time.monotonic() + timeout


def late() -> DeadlineError:
    """Return what a request raises whose time is over."""
    return DeadlineError(
        "the request took longer than its timeout and was ended; allow more time, or ask for less"
    )


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
