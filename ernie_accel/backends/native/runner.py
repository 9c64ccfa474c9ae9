"""The Runner over the extension module: checks, translation of steps and of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import (
    Capacity,
    PartProfile,
    RunnerInfo,
    Select,
    SequenceId,
    Step,
    StepProfile,
    StepResult,
)
from ernie_accel.backends.checks import check_batch, check_drafts, check_length
from ernie_accel.backends.native.translate import translate
from ernie_accel.errors import ClosedError
from ernie_accel.types import TokenLogprob

if TYPE_CHECKING:
    from ernie_accel import _native

__all__ = ["NativeRunner"]

T = TypeVar("T")
_NO_IDS = np.zeros(0, np.int32)
_NO_MASK = np.zeros(0, np.uint32)


class NativeRunner:
    """One model on the native engine. See ``ernie_accel.backends.base.Runner``."""

    def __init__(self, model: _native.Model, info: RunnerInfo) -> None:
        self._model: _native.Model | None = model
        self._info = info

    @property
    def info(self) -> RunnerInfo:
        """Fixed properties."""
        return self._info

    def open(self) -> SequenceId:
        """Begin an empty sequence."""
        return translate(self._open_model().open)

    def free(self, seq: SequenceId) -> None:
        """Forget a sequence and give its pages back."""
        model = self._open_model()
        translate(lambda: model.free(seq))

    def fork(self, seq: SequenceId, length: int) -> SequenceId:
        """Begin a sequence that shares the first ``length`` tokens; a page is copied when one side writes to it."""
        model = self._open_model()
        check_length(length, self.length(seq))
        return translate(lambda: model.fork(seq, length))

    def truncate(self, seq: SequenceId, length: int) -> None:
        """Keep the first ``length`` tokens only."""
        model = self._open_model()
        check_length(length, self.length(seq))
        translate(lambda: model.truncate(seq, length))

    def park(self, seq: SequenceId) -> None:
        """Keep a sequence for later forks, outside the count of open ones."""
        model = self._open_model()
        translate(lambda: model.park(seq))

    def claim(self, seq: SequenceId, tokens: int) -> None:
        """Lengthen a sequence without computing, its keys and values zero: for measuring what a context takes."""
        model = self._open_model()
        translate(lambda: model.claim(seq, tokens))

    def length(self, seq: SequenceId) -> int:
        """Tokens that the sequence holds."""
        model = self._open_model()
        return translate(lambda: model.length(seq))

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        """Compute one step; see the contract. The interpreter lock is released meanwhile."""
        model = self._open_model()
        ids = check_batch(batch, self._info, self.length)
        answers = translate(
            lambda: model.forward([_to_tuple(*pair) for pair in zip(batch, ids, strict=True)])
        )
        return [_to_result(step, answer) for step, answer in zip(batch, answers, strict=True)]

    def draft(
        self, seqs: Sequence[SequenceId], token_ids: Sequence[int], depth: int
    ) -> list[tuple[int, ...]]:
        """Guess ``depth`` tokens for each sequence; see ``ernie_accel.backends.base.Drafts`` for the contract."""
        model = self._open_model()
        check_drafts(seqs, token_ids, depth, self._info, self.length)
        return translate(lambda: model.draft(list(zip(seqs, token_ids, strict=True)), depth))

    def capacity(self) -> Capacity:
        """Room in the KV cache; a page that is begun counts as used."""
        model = self._open_model()
        return translate(lambda: Capacity(free_tokens=model.free_tokens, used_tokens=model.used_tokens))

    def profile(self, on: bool) -> StepProfile:
        """Begin or end counting where the time of steps goes, and return what was counted since the last call."""
        model = self._open_model()
        steps, parts = translate(lambda: model.profile(on))
        return StepProfile(steps, tuple(PartProfile(*part) for part in parts))

    def close(self) -> None:
        """Give all memory back."""
        self._model = None

    def _open_model(self) -> _native.Model:
        if self._model is None:
            raise ClosedError("the model is closed; load it again")
        return self._model


def _to_tuple(step: Step, ids: npt.NDArray[np.int32]) -> _native.StepTuple:
    select = None if step.select is None else native_select(step.select) if step.output == "select" else None
    return step.seq, ids, step.rows, step.output, select


def native_select(select: Select) -> _native.Select:
    """Return the settings in the extension module's form, arrays included."""
    from ernie_accel import _native

    seen = _array(select.seen, _NO_IDS)
    return _native.Select(
        temperature=select.temperature,
        top_k=select.top_k,
        top_p=select.top_p,
        min_p=select.min_p,
        repetition_penalty=select.repetition_penalty,
        presence_penalty=select.presence_penalty,
        frequency_penalty=select.frequency_penalty,
        vocab_limit=select.vocab_limit,
        seen=seen,
        counts=_array(select.counts, np.zeros_like(seen)),
        mask=_array(select.mask, _NO_MASK),
        logprobs=select.logprobs,
        seed=select.seed,
    )


def _array(given: npt.NDArray[T] | None, default: npt.NDArray[T]) -> npt.NDArray[T]:  # type: ignore[type-var]
    return default if given is None else np.ascontiguousarray(given, dtype=default.dtype)


def _to_result(step: Step, answer: npt.NDArray[np.float32] | list[_native.Drawn] | None) -> StepResult:
    if answer is None:
        return StepResult()
    if step.output == "logits":
        return StepResult(logits=cast("npt.NDArray[np.float32]", answer))
    if step.output == "hidden":
        return StepResult(hidden=cast("npt.NDArray[np.float32]", answer))
    drawn = cast("list[_native.Drawn]", answer)
    tokens = tuple(token for token, _, _ in drawn)
    if step.select is None or step.select.logprobs < 0:
        return StepResult(token_ids=tokens)
    return StepResult(token_ids=tokens, logprobs=tuple(TokenLogprob(t, p, tuple(top)) for t, p, top in drawn))
