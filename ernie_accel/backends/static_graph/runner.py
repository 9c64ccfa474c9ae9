"""The Runner over any executor: sequences and cache on the host, ragged batches as padded calls of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import RunnerInfo, SequenceId, Step, StepResult
from ernie_accel.backends.checks import check_batch
from ernie_accel.backends.sequences import SequenceRunner
from ernie_accel.backends.static_graph.cache import Cache, CachedSequence
from ernie_accel.backends.static_graph.executor import Array, Executor
from ernie_accel.backends.static_graph.groups import Item, make_groups
from ernie_accel.errors import BackendError, ClosedError
from ernie_accel.export.signature import Signature

__all__ = ["StaticGraphRunner"]


@dataclass(frozen=True)
class _Call:
    """A group of steps in one call: item i lies in row ``rows[i]`` of the call, padded to ``width`` ids."""

    items: list[Item]
    rows: list[int]
    width: int
    past: list[Array]
    count: int

    def flat_rows(self, output: str) -> npt.NDArray[np.int64]:
        """Rows of the flattened call for which that output is wanted, item by item."""
        parts = [
            row * self.width + np.arange(len(item.ids) - item.step.rows, len(item.ids))
            for row, item in zip(self.rows, self.items, strict=True)
            if item.step.output == output
        ]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


class StaticGraphRunner(SequenceRunner[CachedSequence]):
    """Runs the graph on ragged batches; see ``ernie_accel.backends.base.Runner`` for the contract.

    Args:
        executor: Has the graph loaded; closed with the Runner.
        signature: Of that graph.
        info: The Runner's fixed properties.
        kv_tokens: Tokens that all sequences together may hold.
    """

    def __init__(self, executor: Executor, signature: Signature, info: RunnerInfo, kv_tokens: int) -> None:
        super().__init__(info, kv_tokens)
        self._executor = executor
        self._signature = signature
        self._most = executor.info.max_sequences
        self._cache = Cache(signature, executor.zeros, info.max_context, self._most)

    def free(self, seq: SequenceId) -> None:
        """Forget a sequence."""
        self._state(seq).release()
        super().free(seq)

    def park(self, seq: SequenceId) -> None:
        """Keep a sequence for later forks, outside the count of open ones."""
        self._state(seq).compact()
        super().park(seq)

    def close(self) -> None:
        """Drop graph and caches."""
        for state in self._states.values():
            state.release()  # arenas and their sequences hold each other
        super().close()
        self._executor.close()

    def _empty(self) -> CachedSequence:
        return CachedSequence(self._cache)

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        """Compute one step. Lengths change last, so an error leaves every sequence as it was."""
        if self._closed:
            raise ClosedError("the runner is closed; load the model again")
        ids = check_batch(batch, self._info, self._growable_length)
        self._check_tokens(sum(map(len, ids)))
        items = [Item(i, step, self._state(step.seq), ids[i]) for i, step in enumerate(batch)]
        calls = [(call, self._run(call)) for call in map(self._prepare, make_groups(items, self._most))]
        for item in items:
            self._cache.reserve(item.sequence, len(item.ids))
        results: dict[int, StepResult] = {}
        for call, outputs in calls:
            _append(call, outputs["new"])
            results.update(_answers(call, outputs))
        return [results[i] for i in range(len(batch))]

    def _prepare(self, items: list[Item]) -> _Call:
        sequences = [item.sequence for item in items]
        width = max(len(item.ids) for item in items)
        if not any(sequence.length for sequence in sequences):
            return _Call(items, list(range(len(items))), width, self._no_past(len(items)), len(items))
        arena, first, end = self._cache.gather(sequences)
        past = [layer[first:end] for layer in arena.data]
        return _Call(items, [sequence.row - first for sequence in sequences], width, past, end - first)

    def _no_past(self, count: int) -> list[Array]:
        s, info = self._signature, self._executor.info
        shape = (count, s.kv_heads, 0 if info.empty_past else 1, s.head_dim)
        return [np.zeros(shape, np.dtype(s.cache_dtype))] * (2 * s.layers)

    def _run(self, call: _Call) -> Mapping[str, Array]:
        ids = np.zeros((call.count, call.width), np.int64)
        lengths = np.zeros(call.count, np.int64)
        for row, item in zip(call.rows, call.items, strict=True):
            ids[row, : len(item.ids)] = item.ids
            lengths[row] = item.sequence.length
        inputs = {
            "ids": ids,
            "positions": lengths[:, None] + np.arange(call.width),
            "lengths": lengths,
            "logit_rows": self._wanted(call, "logits"),
            "hidden_rows": self._wanted(call, "hidden"),
            **dict(zip(self._signature.past_names, call.past, strict=True)),
        }
        outputs = self._executor.run(inputs)
        self._check(call, inputs, outputs)
        return outputs

    def _wanted(self, call: _Call, output: str) -> npt.NDArray[np.int64]:
        rows = call.flat_rows(output)
        return rows if len(rows) or self._executor.info.empty_rows else np.zeros(1, np.int64)

    def _check(self, call: _Call, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """A foreign engine that answers in another shape, or with no numbers, must not corrupt the cache."""
        s, engine = self._signature, self._executor.info.engine
        wanted = {
            "logits": (len(inputs["logit_rows"]), s.vocab_size),
            "hidden": (len(inputs["hidden_rows"]), s.hidden_size),
            "new": (2 * s.layers, call.count, s.kv_heads, call.width, s.head_dim),
        }
        for name, shape in wanted.items():
            if outputs[name].shape != shape:
                raise BackendError(
                    f"{engine}: the output {name!r} has shape {outputs[name].shape}, expected {shape}"
                )
            if not np.isfinite(outputs[name]).all():
                raise BackendError(f"{engine}: the output {name!r} holds NaN or infinity")


def _append(call: _Call, new: Array) -> None:
    """Write each item's new keys and values into its row, and count them."""
    for row, item in zip(call.rows, call.items, strict=True):
        arena = item.sequence.arena
        assert arena is not None  # reserve() gave it one
        arena.write(item.sequence, new[:, row, :, : len(item.ids)])


def _answers(call: _Call, outputs: Mapping[str, Array]) -> dict[int, StepResult]:
    """Cut the outputs into the answers of each item."""
    done = {"logits": 0, "hidden": 0}
    results = {}
    for item in call.items:
        step = item.step
        start = done[step.output]
        done[step.output] = end = start + step.rows
        rows = outputs[step.output][start:end]
        if step.rows == 0:
            results[item.index] = StepResult()
        elif step.output == "hidden":
            results[item.index] = StepResult(hidden=rows)
        else:
            results[item.index] = StepResult(logits=rows)
    return results
