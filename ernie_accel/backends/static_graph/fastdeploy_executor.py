"""A graph in a child process as an ``Executor``: what it is called with lies where the child reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ernie_accel.backends.static_graph.executor import Array, ExecutorInfo
from ernie_accel.backends.static_graph.worker import Worker
from ernie_accel.errors import CapacityError
from ernie_accel.export.signature import Signature

__all__ = ["ChildExecutor", "ShapeCheck", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]
ShapeCheck = Callable[[Shapes], None]


class ChildExecutor:
    """Runs the graph that a worker has opened.

    Args:
        worker: Closed with the executor.
        signature: Of the graph.
        info: Fixed properties.
        seconds: How long a step may take.
        check: Raises for shapes of inputs that the graph must not be called with.
    """

    def __init__(
        self,
        worker: Worker,
        signature: Signature,
        info: ExecutorInfo,
        seconds: float,
        check: ShapeCheck | None = None,
    ) -> None:
        self._worker = worker
        self._signature = signature
        self._info = info
        self._seconds = seconds
        self._check = check
        self._scratch: dict[str, Array] = {}

    @property
    def info(self) -> ExecutorInfo:
        """Fixed properties."""
        return self._info

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._worker.pid

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory that the child sees too."""
        return self._worker.memory.zeros(shape, dtype)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one step; caches are read where they lie, ids and rows are copied."""
        if self._check is not None:
            self._check({name: values.shape for name, values in inputs.items()})
        shared = {name: self._shared(name, values) for name, values in inputs.items()}
        outputs = {
            name: self._room(name, shape, dtype) for name, (shape, dtype) in self._wanted(inputs).items()
        }
        self._worker.ask(
            "compute a step",
            self._seconds,
            op="run",
            inputs=[self._entry(name, values) for name, values in shared.items()],
            outputs=[self._entry(name, values) for name, values in outputs.items()],
        )
        return {name: values.copy() for name, values in outputs.items()}

    def close(self) -> None:
        """End the child."""
        self._scratch.clear()
        self._worker.close()

    def _wanted(self, inputs: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of each output."""
        s, (batch, width) = self._signature, inputs["ids"].shape
        return {
            "logits": ((len(inputs["logit_rows"]), s.vocab_size), "float32"),
            "hidden": ((len(inputs["hidden_rows"]), s.hidden_size), "float32"),
            "new": ((2 * s.layers, batch, s.kv_heads, width, s.head_dim), s.cache_dtype),
        }

    def _shared(self, name: str, values: Array) -> Array:
        """Return the array itself where the child sees it, else a copy that it does see."""
        if self._worker.memory.offset(values) is not None:
            return values
        copy = self._room(name, values.shape, values.dtype)
        copy[...] = values
        return copy

    def _room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return shared memory of that shape, which the next step may have too."""
        count = max(1, int(np.prod(shape, dtype=np.int64)))
        held = self._scratch.get(name)
        if held is None or held.size < count or held.dtype != np.dtype(dtype):
            size = max(count, 2 * held.size) if held is not None else count
            try:
                held = self._scratch[name] = self._worker.memory.zeros((size,), dtype)
            except MemoryError as error:
                raise CapacityError(
                    f"a step's {name}: {error}; lower max_step_tokens or max_batch"
                ) from error
        return held[: int(np.prod(shape, dtype=np.int64))].reshape(shape)

    def _entry(self, name: str, values: Array) -> list[Any]:
        return [name, values.dtype.str, list(values.shape), self._worker.memory.offset(values)]
