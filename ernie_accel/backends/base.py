"""The contract between the engine and whatever computes: ``Backend`` opens a ``Runner``; a Runner does one step.

A Runner owns weights and KV cache and knows nothing of requests, text or policies. Third-party backends implement
these protocols and name themselves in the entry-point group ``ernie_accel.backends``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.engine import Engine, EngineInfo, PartProfile, StepProfile
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.types import Precision, Progress, TokenLogprob

if TYPE_CHECKING:
    from pathlib import Path

    from ernie_accel.architecture.config import ModelConfig
    from ernie_accel.checkpoint.packed import PackedMatrix, Unit

__all__ = [
    "AnswersForOptions",
    "Availability",
    "Backend",
    "Capacity",
    "Engine",
    "EngineBackend",
    "EngineInfo",
    "EngineSettings",
    "Footprint",
    "LoadOptions",
    "Output",
    "Packer",
    "PackingBackend",
    "PartProfile",
    "Runner",
    "RunnerInfo",
    "Select",
    "SequenceId",
    "Step",
    "StepProfile",
    "StepResult",
]

SequenceId = int
"""Names one sequence of a Runner; never used again after ``free``."""

Output = Literal["logits", "hidden", "select"]


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here; ``reason`` and ``next_step`` are one sentence each."""

    ok: bool
    reason: str
    next_step: str = ""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a model takes in a backend; with ``LoadOptions.tensor_parallel`` those of one rank.

    The planner asks for this and knows no backend. What a backend does not say is estimated.

    Attributes:
        kv_per_token: KV cache for one token of one sequence.
        scratch: Working memory of the largest step.
        runtime: Code, threads, tables, and what the process of a device takes before a model is there.
        page_tokens: Tokens of one page of KV cache, which is taken whole.
        weights: Weights by class of parameter (``ernie_accel.architecture.counts.CLASSES``); None where the backend
            takes the bytes that the names of precisions say.
        communication: Buffers of exchanges between ranks.
        step_tokens: Tokens of the largest step, which ``scratch`` is for; None where the backend does not say.
        kv_precision: What ``"auto"`` stands for; None where the backend does not say.
        loading: What loading takes besides and gives back when it has ended, as a share of the weights' bytes.
        looked_up: Of ``weights``, a table of which a step takes single rows, beside a head that it multiplies by.
    """

    kv_per_token: int
    scratch: int
    runtime: int
    page_tokens: int = 1
    weights: Mapping[str, int] | None = None
    communication: int = 0
    step_tokens: int | None = None
    kv_precision: str | None = None
    loading: float = 0.0
    looked_up: int = 0


class EngineSettings(Protocol):
    """What ``EngineOptions`` say, for a backend that batches by itself."""

    @property
    def prefix_cache(self) -> bool:
        """Keep the KV cache of ended requests."""
        ...

    @property
    def speculation(self) -> str:
        """Guess tokens: "off", or how."""
        ...

    @property
    def queue_size(self) -> int:
        """Most requests that wait."""
        ...

    @property
    def step_tokens(self) -> int | None:
        """Most tokens of one step."""
        ...

    @property
    def latency_target(self) -> float | None:
        """Seconds between two tokens that prompts of others may not exceed."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What ``Model.load`` asks of a backend; ``None`` and ``"auto"`` leave the choice to it.

    ``memory_limit`` is bytes for the KV cache, whose pages are taken on demand; ``step_tokens`` the most tokens of one
    step, all sequences together. ``multi_token`` asks for the weights of multi-token prediction and the capability
    ``draft``; a backend that lacks it ignores this. ``engine`` is what ``Model.load`` was given under that name, for
    backends that open an Engine of their own.
    """

    precision: Precision | Literal["auto"] = "auto"
    kv_precision: Precision | Literal["auto"] = "auto"
    device: str | None = None
    max_context: int | None = None
    max_batch: int | None = None
    memory_limit: int | None = None
    threads: int | None = None
    tensor_parallel: int | Literal["auto"] = 1
    step_tokens: int | None = None
    backend_options: object | None = None
    multi_token: bool = False
    progress: Progress | None = None
    engine: EngineSettings | None = None


@dataclass(frozen=True, kw_only=True)
class RunnerInfo(EngineInfo):
    """Fixed properties of a Runner.

    Attributes:
        vocab_size: Rows of the logits, padding rows included.
        hidden_size: Width of ``"hidden"`` rows.
        max_context: Largest length of a sequence, tokens.
        page_size: Tokens of one KV page; 1 where the cache is not paged.
        max_step_tokens: Largest number of tokens in one ``forward``, all sequences together.
        max_sequences: Largest number of open sequences.
        threads: Threads of this process that a step keeps busy; 0 where it computes elsewhere, for example on a GPU.
        capabilities: Of ``select``, ``hidden``, ``invariant``, ``profile``, ``park``, ``draft``, ``overlap`` (others
            may come; unknown ones are ignored). The last four stand for the methods of a protocol in
            ``ernie_accel.backends.capabilities``.
    """

    hidden_size: int
    page_size: int
    max_step_tokens: int
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Select:
    """How to draw a token from each row. ``ernie_accel.engine.sampling`` is the definition in NumPy.

    Row i is drawn with the key (seed, absolute position of the token that is drawn); rows assume that the tokens of
    earlier rows were accepted, whose counts the caller does not know yet and the Runner does not add. Numbers are
    finite; a Runner refuses others with ArgumentError.

    Attributes:
        temperature: 0 takes the most probable token, the lowest id among equals.
        top_k: 0 keeps all.
        vocab_limit: Ids from here on (padding rows of the vocabulary) are never drawn; 0 means no limit.
        seen: int32 [n], distinct ids of prompt and output, ascending.
        counts: int32 [n], how often the output (not the prompt) holds each of ``seen``.
        mask: uint32 [ceil(vocab_size / 32)], bit i % 32 of word i // 32 set where id i is allowed; None allows all.
        logprobs: Number of alternatives to report for each row; -1 reports nothing, 0 the drawn token's alone.
        seed: 0 to 2**64 - 1.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    vocab_limit: int = 0
    seen: npt.NDArray[np.int32] | None = None
    counts: npt.NDArray[np.int32] | None = None
    mask: npt.NDArray[np.uint32] | None = None
    logprobs: int = -1
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """Appends ``token_ids`` (at least one) to a sequence and asks for answers at its last ``rows`` positions.

    ``output`` says which: ``"logits"`` float32 [rows, vocab_size]; ``"hidden"`` float32 [rows, hidden_size], after the
    final norm; ``"select"`` drawn ids, logits never leave the Runner. ``rows`` 0 asks for nothing.
    """

    seq: SequenceId
    token_ids: Sequence[int] | npt.NDArray[np.int32]
    rows: int = 1
    output: Output = "logits"
    select: Select | None = None


@dataclass(frozen=True)
class StepResult:
    """Answer to one Step; only what was asked for is set."""

    logits: npt.NDArray[np.float32] | None = None
    hidden: npt.NDArray[np.float32] | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Capacity:
    """Tokens of KV cache: still free (over all sequences together) and in use."""

    free_tokens: int
    used_tokens: int


@runtime_checkable
class Runner(Protocol):
    """One model, one step. Calls come from one thread at a time; ``close`` may be called twice."""

    @property
    def info(self) -> RunnerInfo:
        """Fixed properties."""
        ...

    def open(self) -> SequenceId:
        """Begin an empty sequence. Raises CapacityError when ``max_sequences`` are open."""
        ...

    def free(self, seq: SequenceId) -> None:
        """Forget a sequence and give its pages back."""
        ...

    def fork(self, seq: SequenceId, length: int) -> SequenceId:
        """Begin a sequence that starts with the first ``length`` tokens of another."""
        ...

    def truncate(self, seq: SequenceId, length: int) -> None:
        """Keep the first ``length`` tokens only."""
        ...

    def length(self, seq: SequenceId) -> int:
        """Tokens that the sequence holds."""
        ...

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        """Compute one step of a ragged batch, each sequence at most once.

        All or nothing: on ArgumentError, ContextLengthError or CapacityError every sequence is as it was.
        """
        ...

    def capacity(self) -> Capacity:
        """Room in the KV cache."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...


@runtime_checkable
class Backend(Protocol):
    """What an entry point in the group ``ernie_accel.backends`` names: a class that is called without arguments.

    It may have three attributes besides: ``precisions``, the names of those that it has for weights, what ``"auto"``
    means first (without, ``open`` refuses what it lacks itself); ``options_type``, the class of its
    ``backend_options``, which then choose it under ``backend="auto"``; and ``splits``, true if it takes
    ``tensor_parallel`` above 1.
    """

    name: str

    def available(self) -> Availability:
        """Say whether the backend can run here, importing nothing heavy where that can be avoided."""
        ...

    def estimate(self, config: Any, options: LoadOptions) -> Footprint:
        """Bytes that a model of this configuration needs, by what they are for."""
        ...

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> Runner:
        """Load the weights. The checkpoint may be closed afterwards.

        ``Model.load`` takes an Engine too; a backend whose library reads the files itself is an ``EngineBackend``.
        """
        ...


@runtime_checkable
class EngineBackend(Backend, Protocol):
    """A Backend whose library works on whole requests. ``open_engine`` is called in place of ``open``, which raises
    UnsupportedError.

    It gets a directory and not a Checkpoint: its library reads the files itself, so they need not be a kind that this
    library could read.
    """

    def reads_weights(self, options: LoadOptions) -> bool:
        """Whether files of weights must be there; else configuration and tokenizer do, or no directory at all."""
        ...

    def open_engine(self, directory: Path | None, config: ModelConfig | None, options: LoadOptions) -> Engine:
        """Start what computes.

        Args:
            directory: None if there is none: ``source=None``, or a checkpoint in memory.
            config: Of the directory or checkpoint, if there is one.
            options: What ``Model.load`` was given.
        """
        ...


@runtime_checkable
class AnswersForOptions(Protocol):
    """What a Backend has besides if it depends on the options whether it can run here."""

    def available_for(self, options: LoadOptions) -> Availability:
        """As ``available``, for a call of ``Model.load`` with these options."""
        ...


class Packer(Protocol):
    """Packs the matrices of one checkpoint, unit by unit, without holding more than a unit in memory."""

    @property
    def recipe(self) -> str:
        """How the codes were chosen, one sentence."""
        ...

    def pack(self, unit: Unit) -> list[PackedMatrix]:
        """Return the packed matrices of a unit, in its order. Raises CheckpointError if a tensor does not fit."""
        ...


@runtime_checkable
class PackingBackend(Protocol):
    """What a Backend offers besides, if it loads quantised matrices and directories of packed weights.

    Such a backend takes a ``QuantisedCheckpoint`` and a ``PackedCheckpoint`` in ``open``, and its ``precisions`` begin
    with what ``"auto"`` means.
    """

    def packer(self, checkpoint: Checkpoint, options: LoadOptions) -> Packer:
        """Pack for ``options.precision``: a ``QuantisedCheckpoint`` as it is, any other by nearest rounding."""
        ...
