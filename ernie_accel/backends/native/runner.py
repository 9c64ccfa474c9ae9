"""The Runner over the extension module: checks, translation of steps and of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ernie_accel.backends.base import (
    Capacity,
    PartProfile,
    RunnerInfo,
    SequenceId,
    Step,
    StepProfile,
    StepResult,
)
from ernie_accel.backends.checks import check_batch, check_drafts, check_length
from ernie_accel.backends.native.pending import NativePending
from ernie_accel.backends.native.steps import native_steps, to_results
from ernie_accel.backends.native.translate import translate
from ernie_accel.errors import ClosedError

if TYPE_CHECKING:
    from ernie_accel import _native

__all__ = ["NativeRunner"]


class NativeRunner:
    """One model on the native engine. See ``ernie_accel.backends.base.Runner``."""

    def __init__(self, model: _native.Model, info: RunnerInfo) -> None:
        self._model: _native.Model | None = model
        self._info = info
        self._pending: NativePending | None = None

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
        return to_results(batch, translate(lambda: model.forward(native_steps(batch, ids))))

    def start(self, batch: Sequence[Step]) -> NativePending:
        """Have another thread begin a step; see ``ernie_accel.backends.capabilities.Overlaps`` for the contract."""
        model = self._open_model()
        ids = check_batch(batch, self._info, self.length, late=True)
        translate(lambda: model.start(native_steps(batch, ids)))
        self._pending = NativePending(self._open_model, batch, self._info.vocab_size)
        return self._pending

    def draft(
        self, seqs: Sequence[SequenceId], token_ids: Sequence[int], depth: int
    ) -> list[tuple[int, ...]]:
        """Guess ``depth`` tokens for each sequence; ``ernie_accel.backends.capabilities.Drafts`` is the contract."""
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
        """Give all memory back; a step under way is given up."""
        if self._model is not None and self._pending is not None:
            self._pending.close()
        self._model = self._pending = None

    def _open_model(self) -> _native.Model:
        if self._model is None:
            raise ClosedError("the model is closed; load it again")
        return self._model
