"""Frozen option and result objects that every layer shares.

Options are checked when they are made, so a wrong value fails at the line that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from ernie_accel.display import count, html_table, size, text_table
from ernie_accel.reply import Reply, ToolCall
from ernie_accel.sampling import Sampling, SamplingParams

__all__ = [
    "Chunk",
    "Completion",
    "FinishReason",
    "Message",
    "ModelInfo",
    "Precision",
    "Progress",
    "Reply",
    "Sampling",
    "SamplingParams",
    "Score",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "Usage",
]

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4"]
"""Number format of weights (and of the arithmetic that uses them)."""

FinishReason = Literal["stop", "length", "cancelled"]
"""Why a completion ended: an end token or stop string, the token limit or the context's end, a cancel."""

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)`` while something long runs; ``done`` and ``total`` are bytes."""


class Message(TypedDict):
    """One chat message, as in the OpenAI API."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of one request. ``cached_tokens`` of the prompt were computed for an earlier request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of one request went.

    Attributes:
        time_to_first_token: Seconds from the call to the first token.
        prefill_seconds: Seconds spent on the prompt.
        decode_seconds: Seconds from the first token to the last.
        prefill_tokens_per_second: Prompt tokens that had to be computed, by ``prefill_seconds``.
        decode_tokens_per_second: Tokens after the first by ``decode_seconds``; 0 where there is only one.
        peak_memory: Largest resident memory of the process so far, bytes.
        queue_seconds: Seconds from the call to the start of the request.
        drafted_tokens: Guesses of speculation that were checked.
        accepted_tokens: Of them, those that were right.
    """

    time_to_first_token: float
    prefill_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory: int
    queue_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of one token under the model itself, before penalties and temperature.

    ``top`` holds (token id, log-probability) of the most probable tokens, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What one prompt gave.

    ``token_ids`` holds generated ids only, and ends with the end token if one was drawn. ``text`` is "" without a
    tokenizer. ``alternatives`` holds the other completions where ``n`` is above 1. ``reply`` is what ``chat`` and
    ``stream_chat`` make of the text: thoughts, answer and tool calls; None elsewhere.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    alternatives: tuple[Completion, ...] = field(default=(), repr=False)
    reply: Reply | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Completion({self.text!r}, {', '.join(f'{name}: {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return html_table("Completion", [("text", self.text), *self._facts()])

    def _facts(self) -> list[tuple[str, str]]:
        used, times = self.usage, self.timings
        facts = [
            ("finish_reason", self.finish_reason),
            ("tokens", f"{used.prompt_tokens} + {used.completion_tokens}"),
            ("time_to_first_token", f"{times.time_to_first_token:.3f} s"),
            ("decode", f"{times.decode_tokens_per_second:.1f} tokens/s"),
            ("seed", str(self.seed)),
        ]
        return [*facts, ("alternatives", str(len(self.alternatives)))] if self.alternatives else facts


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a stream: text that is complete so far, and the tokens that came with it.

    ``text`` may be "" while a character is still incomplete or a stop string may still match.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probabilities of a given text.

    ``logprobs[i]`` belongs to ``token_ids[i]`` given all ids before it; it is None for the first id, which nothing
    precedes.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[float | None, ...] = field(repr=False)

    @property
    def total(self) -> float:
        """Sum of the natural-log probabilities."""
        return math.fsum(p for p in self.logprobs if p is not None)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; nan if nothing was scored, inf where float64 cannot hold it."""
        scored = sum(p is not None for p in self.logprobs)
        try:
            return math.exp(-self.total / scored) if scored else math.nan
        except OverflowError:
            return math.inf

    def __repr__(self) -> str:
        return (
            f"Score(tokens={len(self.token_ids)}, total={self.total:.4f}, perplexity={self.perplexity:.4f})"
        )


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a checkpoint holds, read from its headers, and how it was loaded.

    Attributes:
        name: Directory name, hub id, or name of the synthetic shape.
        architecture: ``"ernie4_5"`` or ``"ernie4_5_moe"``.
        layout: ``"pt"``, ``"paddle"``, ``"packed"`` (by ``ernie_accel.quantize``), ``"synthetic"``; ``"unknown"``
            where the backend alone sees the weights.
        parameters: Number of parameters by class (``embedding``, ``attention``, ``ffn``, ``experts``,
            ``shared_experts``, ``router``, ``norm``, ``head``), set-aside tensors left out.
        bytes: Bytes on disk by the same classes.
        dtypes: Number of tensors for each stored dtype.
        derived: Settings that a published rule gave because config.json lacks them, one sentence each.
        set_aside: Names of tensors that are not part of the text model (multi-token prediction, a stored copy of a tied
            head, vision).
        files: Weight files, by name.
        backend, precision, kv_precision, recipe: How it was loaded; None before. A packed one has precision and recipe.
        backend_reason: Why that backend, one sentence.
    """

    name: str
    architecture: str
    layout: str
    parameters: Mapping[str, int]
    bytes: Mapping[str, int]
    dtypes: Mapping[str, int]
    derived: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    backend: str | None = None
    precision: str | None = None
    kv_precision: str | None = None
    recipe: str | None = None
    backend_reason: str | None = None

    @property
    def total_parameters(self) -> int:
        """All parameters of the text model."""
        return sum(self.parameters.values())

    @property
    def total_bytes(self) -> int:
        """All bytes of the text model on disk."""
        return sum(self.bytes.values())

    def __repr__(self) -> str:
        return f"ModelInfo\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return html_table("ModelInfo", self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of everything that is known, as a table shows it."""
        loaded = ("backend", "backend_reason", "precision", "kv_precision", "recipe")
        rows = [
            ("name", self.name),
            ("architecture", self.architecture),
            ("layout", self.layout),
            ("parameters", _by_class(self.parameters, count)),
            ("bytes", _by_class(self.bytes, size)),
            ("bits_per_weight", self._bits() if self.layout == "packed" else ""),
            ("dtypes", ", ".join(f"{number} x {dtype}" for dtype, number in self.dtypes.items())),
            *((name, getattr(self, name)) for name in loaded if getattr(self, name) is not None),
            ("derived", "\n".join(self.derived)),
            ("set_aside", "\n".join(self.set_aside)),
            ("files", "\n".join(self.files)),
        ]
        return [(name, value) for name, value in rows if value]

    def _bits(self) -> str:
        each = (f"{name} {8 * self.bytes[name] / number:.2f}" for name, number in self.parameters.items())
        return f"{8 * self.total_bytes / self.total_parameters:.2f} ({', '.join(each)})"


def _by_class(numbers: Mapping[str, int], write: Callable[[int], str]) -> str:
    if not numbers:
        return ""
    parts = ", ".join(f"{name} {write(number)}" for name, number in numbers.items())
    return f"{write(sum(numbers.values()))} ({parts})"
