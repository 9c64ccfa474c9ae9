"""A model that needs no weights and no time, for tests of code that uses this library.

``Model.load(path, backend="mock")`` reads the configuration and the tokenizer of a checkpoint, never its tensors. The
next token is a function of the ids before it and of nothing else, so a request gives the same tokens alone, in a
batch, in chunks and after a fork::

    options = MockOptions(reply=tokenizer.encode("It is noon."))
    model = ernie_accel.Model.load(path, backend="mock", backend_options=options)
    assert model.generate("What time is it?").text == "It is noon."

Without a reply, tokens come from a hash of the last ids before and no end token is preferred, so ``max_tokens`` come.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Availability, Footprint, LoadOptions, RunnerInfo, Step, StepResult
from ernie_accel.backends.checks import check_batch, check_context, check_plain_cpu
from ernie_accel.backends.sequences import SequenceRunner
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["MockBackend", "MockOptions", "MockRunner"]

MAX_STEP_TOKENS = 8192
DEFAULT_SEQUENCES = 32
KV_BYTES_PER_TOKEN = 4
"""The ids themselves are all that it keeps."""
MIXED = 64
"""Ids that a token depends on without a reply, beside their number: all of them would make long texts slow."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MockOptions:
    """What the mock answers; given as ``backend_options``.

    Attributes:
        reply: Ids that follow every prompt, then the end token. A prompt whose last ids are the beginning of the reply
            counts as a reply that has begun.
        replies: Reply by prompt, for prompts that are given exactly (all ids, a template's included); ``reply`` answers
            the others.
        certainty: Logit of the next token minus the logit of the id after it, and so on around the vocabulary. At 100
            every temperature draws the next token; 1 gives sampling something to choose from.
        step_seconds: Time that each step takes, for tests of cancelling and of time limits.
    """

    reply: Sequence[int] = ()
    replies: Mapping[tuple[int, ...], Sequence[int]] = field(default_factory=dict)
    certainty: float = 100.0
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "reply", _ids("reply", self.reply))
        replies = {_ids("replies", k): _ids("replies", v) for k, v in self.replies.items()}
        object.__setattr__(self, "replies", replies)
        if not self.certainty > 0:
            raise ArgumentError(f"certainty={self.certainty!r}: must be a number above 0")
        if not self.step_seconds >= 0:
            raise ArgumentError(f"step_seconds={self.step_seconds!r}: must be a number of at least 0")

    def ids(self) -> tuple[int, ...]:
        """All ids of all replies."""
        return tuple(i for reply in (self.reply, *self.replies.values()) for i in reply)


def _ids(name: str, value: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not all(isinstance(i, (int, np.integer)) for i in value):
        raise ArgumentError(f"{name}={value!r}: must be token ids; tokenizer.encode makes them of a text")
    return tuple(int(i) for i in value)


class Ids:
    """State of one sequence: its ids."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.ids)

    def fork(self, length: int) -> Ids:
        """Copy the first ``length`` ids."""
        return Ids(self.ids[:length])

    def truncate(self, length: int) -> None:
        """Forget the tail."""
        del self.ids[length:]


class MockRunner(SequenceRunner[Ids]):
    """Answers from ``MockOptions``; see the module for the rule."""

    def __init__(self, info: RunnerInfo, options: MockOptions, end: int | None, kv_tokens: int) -> None:
        super().__init__(info, kv_tokens)
        self._options = options
        self._end = end

    def _empty(self) -> Ids:
        return Ids()

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        """Append ids and answer for the last rows of each step."""
        self._check_open()
        all_ids = check_batch(batch, self._info, self._growable_length)
        self._check_tokens(sum(map(len, all_ids)))
        time.sleep(self._options.step_seconds)
        results = []
        for step, ids in zip(batch, all_ids, strict=True):
            state = self._state(step.seq)
            state.ids.extend(ids.tolist())
            results.append(self._answer(step, state.ids))
        return results

    def next_token(self, ids: Sequence[int]) -> int:
        """Return the token that follows ``ids``."""
        for prompt, reply in self._options.replies.items():
            given = tuple(ids[len(prompt) :])
            if tuple(ids[: len(prompt)]) == prompt and tuple(reply[: len(given)]) == given:
                return self._after(reply, len(given))
        if self._options.reply:
            return self._after(self._options.reply, _begun(self._options.reply, ids))
        return self._avoid_end(_mix(ids) % self._info.vocab_size)

    def _after(self, reply: Sequence[int], begun: int) -> int:
        """Return the next id of a reply of which ``begun`` ids are out; the end token when it is complete."""
        if begun < len(reply):
            return reply[begun]
        return reply[-1] if self._end is None else self._end

    def _avoid_end(self, token: int) -> int:
        return (token + 1) % self._info.vocab_size if token == self._end else token

    def _answer(self, step: Step, ids: list[int]) -> StepResult:
        heads = [ids[: len(ids) - back] for back in reversed(range(step.rows))]
        if step.rows == 0:
            return StepResult()
        if step.output == "hidden":
            return StepResult(hidden=np.stack([self._hidden(head) for head in heads]))
        return StepResult(logits=np.stack([self._logits(head) for head in heads]))

    def _logits(self, ids: list[int]) -> Array:
        """Largest at the next token, falling by ``certainty`` for each id after it, around the vocabulary."""
        distance = (np.arange(self._info.vocab_size) - self.next_token(ids)) % self._info.vocab_size
        return (-self._options.certainty * distance).astype(np.float32)

    def _hidden(self, ids: list[int]) -> Array:
        """Return a vector that depends on the ids and is never zero."""
        angles = np.arange(1, self._info.hidden_size + 1) * (1 + _mix(ids) % 997)
        values: Array = np.cos(angles).astype(np.float32)
        return values


class MockBackend:
    """The backend named ``mock``. It takes any precision and computes in none."""

    name = "mock"
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
    options_type = MockOptions

    def available(self) -> Availability:
        """Always."""
        return Availability(True, "Computes nothing; answers what a test tells it to.")

    def estimate(self, config: ModelConfig, options: LoadOptions) -> Footprint:
        """A few bytes for each token."""
        return Footprint(
            kv_per_token=KV_BYTES_PER_TOKEN, scratch=4 * config.vocab_size, runtime=0, weights={}
        )

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> MockRunner:
        """Read the configuration only."""
        check_plain_cpu(self.name, options)
        mock = _mock_options(options, checkpoint.config.vocab_size)
        info = _info(self.name, checkpoint.config, options)
        tokens = info.max_sequences * info.max_context
        if options.memory_limit is not None:
            need = self.estimate(checkpoint.config, options)
            tokens = min(tokens, options.memory_limit // need.kv_per_token)
        ends = checkpoint.config.eos_token_ids
        return MockRunner(info, mock, ends[0] if ends else None, tokens)


def _mock_options(options: LoadOptions, vocab_size: int) -> MockOptions:
    given = options.backend_options
    if given is None:
        return MockOptions()
    if not isinstance(given, MockOptions):
        raise ArgumentError(f"backend_options={given!r}: backend 'mock' takes MockOptions")
    wrong = [i for i in given.ids() if not 0 <= i < vocab_size]
    if wrong:
        raise ArgumentError(f"MockOptions: id {wrong[0]} in a reply; must lie in [0, {vocab_size})")
    return given


def _info(name: str, config: ModelConfig, options: LoadOptions) -> RunnerInfo:
    precision = "fp32" if options.precision == "auto" else options.precision
    return RunnerInfo(
        backend=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_context=check_context(options, config.max_position_embeddings),
        precision=precision,
        kv_precision=precision if options.kv_precision == "auto" else options.kv_precision,
        page_size=1,
        max_step_tokens=MAX_STEP_TOKENS,
        max_sequences=options.max_batch or DEFAULT_SEQUENCES,
        capabilities=frozenset({"hidden", "invariant", "park"}),
    )


def _begun(reply: Sequence[int], ids: Sequence[int]) -> int:
    """Return the length of the longest beginning of the reply with which the ids end."""
    for n in range(min(len(reply), len(ids)), 0, -1):
        # the last id first: it tells most lengths apart without a copy
        if reply[n - 1] == ids[-1] and tuple(ids[len(ids) - n :]) == tuple(reply[:n]):
            return n
    return 0


def _mix(ids: Sequence[int]) -> int:
    """Hash the ids to 32 bits (FNV-1a over whole ids, its high half): their number and the last ``MIXED`` of them."""
    value = 0xCBF29CE484222325 ^ len(ids)
    for token in ids[-MIXED:]:
        value = (value ^ (token + 1)) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value >> 32
