"""A ``with`` block in which steps are counted."""

from __future__ import annotations

from types import TracebackType

from typing_extensions import Self

from ernie_accel.backends.base import StepProfile
from ernie_accel.engine.request import Engine
from ernie_accel.errors import ClosedError

__all__ = ["Profiling"]


class Profiling:
    """Counts while it is entered; ``result`` says what, once the block is left.

    Attributes:
        result: Of all steps in the block; no steps and no parts before its end.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.result = StepProfile(0, ())

    def __enter__(self) -> Self:
        self._engine.profile(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.result = self._engine.profile(False)
        except ClosedError:  # closed within the block: what was counted went with it
            if kind is None:
                raise
