"""A step of the native core that another thread has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ernie_accel.backends.base import Select, Step, StepResult
from ernie_accel.backends.checks import check_late
from ernie_accel.backends.native.steps import native_select, to_results
from ernie_accel.backends.native.translate import translate
from ernie_accel.closing import Closing
from ernie_accel.errors import ArgumentError

if TYPE_CHECKING:
    from ernie_accel import _native

__all__ = ["NativePending"]


class NativePending(Closing):
    """See ``ernie_accel.backends.capabilities.Pending``; as a rule most of a step is done when its result is asked for.

    Args:
        model: Gives the model, which has begun the step, or raises ClosedError.
        batch: The step.
        vocab_size: Rows of the logits.
    """

    def __init__(self, model: Callable[[], _native.Model], batch: Sequence[Step], vocab_size: int) -> None:
        self._model = model
        self._batch = batch
        self._vocab_size = vocab_size
        self._over = False

    def result(self, selects: Mapping[int, Select]) -> list[StepResult]:
        """Go on with the step where the other thread is, and return what ``forward`` would have."""
        model = self._model()
        if self._over:
            raise ArgumentError("the step is over: its result was taken, or it was closed")
        with self:
            check_late(self._batch, selects, self._vocab_size)
            late = [(index, native_select(select)) for index, select in selects.items()]
            answers = translate(lambda: model.result(late))
            self._over = True
        return to_results(self._batch, answers, selects)

    def close(self) -> None:
        """Give the step up, a layer from now at most."""
        if not self._over:
            self._over = True
            self._model().abandon()
