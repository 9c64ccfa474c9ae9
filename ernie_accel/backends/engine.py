"""The contract between the faces and whatever works on whole requests: ``Request`` in, ``Handle`` out.

Our own engine, over a Runner, is one implementation; a backend whose library schedules and batches by itself opens
another. ``ernie_accel.backends.tasks`` has a base class that leaves only "give me the pieces of one answer" to write.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ernie_accel.errors import ClosedError, DeadlineError
from ernie_accel.metrics import Metrics
from ernie_accel.reply import Reply
from ernie_accel.types import Chunk, Completion, SamplingParams, Score

__all__ = [
    "LARGEST_SEED",
    "Engine",
    "EngineInfo",
    "Handle",
    "PartProfile",
    "Request",
    "StepProfile",
    "Turn",
    "alternative_seed",
    "closed",
    "late",
]

LARGEST_SEED = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: neighbours lie far apart


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Fixed properties of what computes.

    Attributes:
        backend: Its name.
        vocab_size: Number of ids, padding rows included; 0 where nobody knows here (a server without a local
            directory): ids are then passed on unchecked.
        max_context: Most tokens of prompt and output together.
        precision: Of the weights.
        kv_precision: Of the KV cache.
        max_sequences: Most sequences (or requests, where those are unknown) at a time.
        capabilities: What it can do beyond the least; unknown names are ignored. Of a Runner: see ``RunnerInfo``. Of an
            Engine: ``text`` (takes a prompt that is text), ``chat`` (renders a conversation itself), ``structure``
            (holds outputs to ``params.structure`` itself), ``logits``, ``score``, ``hidden`` (``embed``).
        details: What ``model.info`` and ``doctor`` show: threads, instruction set, quantization recipe and the like.
        max_seed: Largest seed of a request.
    """

    backend: str
    vocab_size: int
    max_context: int
    precision: str
    kv_precision: str
    max_sequences: int
    capabilities: frozenset[str] = frozenset()
    details: Mapping[str, Any] = field(default_factory=dict)
    max_seed: int = LARGEST_SEED


@dataclass(frozen=True)
class PartProfile:
    """One part of the forward pass, over all steps that were counted.

    Attributes:
        name: For instance ``"qkv"``, ``"attention"``, ``"head"``.
        calls: How often it ran; most parts once a layer.
        seconds: Time until it was done, waiting for its slowest thread included.
        bytes: Of weights and KV cache that it had to read.
    """

    name: str
    calls: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class StepProfile:
    """Where the time of some steps went; ``parts`` follow one another without a gap within a step."""

    steps: int
    parts: tuple[PartProfile, ...]

    @property
    def seconds(self) -> float:
        """Seconds of all parts together."""
        return math.fsum(part.seconds for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class Turn:
    """A conversation that the engine renders itself, up to where the assistant's answer begins."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue.

    Attributes:
        token_ids: The prompt. Empty only where no tokenizer is at hand and an engine with the capability ``text`` or
            ``chat`` gets it as ``text`` or ``turn``.
        params: No field is None where a checkpoint is at hand: defaults and seed are settled. Without one, None means
            that the engine's own default holds.
        text, turn: See ``token_ids``; at most one of the two is set.
        stop_ids: Ids that end the generation, the checkpoint's end tokens among them unless they are ignored.
        arrival: When the caller asked, ``time.perf_counter()``.
        priority: Requests of a higher one are started first and keep their memory longest.
        deadline: ``time.monotonic()`` at which the request fails with DeadlineError; infinity means never.
        constraint: What the output is held to, at its beginning: an ``engine.structured.Constraint``. None for engines
            with the capability ``structure``, which look at ``params.structure``.
        parse: Divides an assistant's turn, given as ids and as text.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    text: str | None = None
    turn: Turn | None = None
    stop_ids: frozenset[int] = frozenset()
    arrival: float = field(default_factory=time.perf_counter)
    priority: int = 0
    deadline: float = math.inf
    constraint: Any = None
    parse: Callable[[Sequence[int], str], Reply] | None = None


@runtime_checkable
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


@runtime_checkable
class Engine(Protocol):
    """Works on whole requests, from any number of threads. ``close`` may be called twice.

    What an engine cannot do raises UnsupportedError naming the backends that can; so does a request with something
    that it cannot express.
    """

    @property
    def info(self) -> EngineInfo:
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


def alternative_seed(seed: int, index: int, largest: int = LARGEST_SEED) -> int:
    """Return the seed of alternative ``index``: ``(seed + index * 0x9E3779B97F4A7C15) mod (largest + 1)``.

    The first has the request's own seed, so it is what ``n=1`` gives; and each, asked for alone with the seed that its
    Completion records, comes again.
    """
    return (seed + index * _GOLDEN) % (largest + 1)


def late() -> DeadlineError:
    """Return what a request raises whose time is over."""
    return DeadlineError(
        "the request took longer than its timeout and was ended; allow more time, or ask for less"
    )


def closed() -> ClosedError:
    """Return what calls of a closed model raise."""
    return ClosedError("the model was closed; load it again to go on")
