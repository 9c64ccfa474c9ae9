"""What a foreign engine has to offer to run the static graph: called with arrays by name, it gives arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Executor", "ExecutorInfo"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ExecutorInfo:
    """Fixed properties of an executor.

    Attributes:
        engine: Name and version of what computes, for instance ``"onnxruntime 1.32.0"``.
        empty_rows: Whether ``logit_rows`` and ``hidden_rows`` may be empty; otherwise each holds at least one row.
        empty_past: Whether C may be 0; otherwise the past has at least one place, which no length counts.
        max_sequences: Largest B that it may be called with; None without a limit.
        details: What ``model.info`` and ``doctor`` show besides.
    """

    engine: str
    empty_rows: bool = True
    empty_past: bool = True
    max_sequences: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Executor(Protocol):
    """One loaded graph; ``ernie_accel.export.signature`` names inputs and outputs. Called from one thread at a time."""

    @property
    def info(self) -> ExecutorInfo:
        """Fixed properties."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory for a cache, all zero, which ``run`` reads without a copy; it goes when the array does.

        Raises MemoryError if there is none.
        """
        ...

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one step: every input, C-contiguous, to every output, which are the caller's to keep.

        Raises BackendError for whatever the engine says went wrong.
        """
        ...

    def close(self) -> None:
        """Give all memory back; may be called twice."""
        ...
