"""What the Runner does with an executor: what it feeds, and what happens when that fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ernie_accel.backends.base import RunnerInfo, Step
from ernie_accel.backends.static_graph.executor import Array, Executor, ExecutorInfo
from ernie_accel.backends.static_graph.runner import StaticGraphRunner
from ernie_accel.errors import BackendError
from ernie_accel.export.signature import Signature
from ernie_accel.testing.tiny import tiny_config

CONFIG = tiny_config()
SIGNATURE = Signature.of(CONFIG, "fp32")


class Recorder:
    """An executor that remembers what it was given and answers with row numbers."""

    def __init__(self, **settings: Any) -> None:
        self.info = ExecutorInfo(engine="recorder 1", **settings)
        self.calls: list[dict[str, Array]] = []
        self.fail_at = 0
        self.shorten = False
        self.spoil: tuple[str, Any] | None = None

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.zeros(shape, dtype)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.calls.append(dict(inputs))
        if len(self.calls) == self.fail_at:
            raise BackendError("the engine died")
        s, (count, width) = SIGNATURE, inputs["ids"].shape
        new = np.zeros((2 * s.layers, count, s.kv_heads, width, s.head_dim), np.float32)
        new += inputs["ids"][None, :, None, :, None]
        answers = {
            "logits": np.repeat(inputs["logit_rows"][:, None], s.vocab_size, axis=1).astype(np.float32),
            "hidden": np.repeat(inputs["hidden_rows"][:, None], s.hidden_size, axis=1).astype(np.float32),
            "new": new[:, :, :, : width - self.shorten],
        }
        if self.spoil is not None:
            name, change = self.spoil
            answers[name] = change(answers[name])
        return answers

    def close(self) -> None:
        self.calls.clear()


def runner(executor: Executor) -> StaticGraphRunner:
    info = RunnerInfo(
        backend="recorder",
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        max_context=256,
        precision="fp32",
        kv_precision="fp32",
        page_size=1,
        max_step_tokens=512,
        max_sequences=16,
        capabilities=frozenset({"hidden", "park"}),
    )
    return StaticGraphRunner(executor, SIGNATURE, info, 4096)


def test_the_recorder_is_an_executor() -> None:
    assert isinstance(Recorder(), Executor)


def test_a_decoding_step_is_given_the_cache_itself() -> None:
    executor = Recorder()
    under_test = runner(executor)
    seqs = [under_test.open() for _ in range(3)]
    under_test.forward([Step(seq, [1, 2, 3]) for seq in seqs])
    under_test.forward([Step(seq, [4]) for seq in seqs])
    for _ in range(2):
        under_test.forward([Step(seq, [5]) for seq in seqs])
    first, second = (call["past_key_0"] for call in executor.calls[-2:])
    assert first.flags.c_contiguous
    assert np.shares_memory(first, second)
    assert second[0, 0, :6, 0].tolist() == [
        1,
        2,
        3,
        4,
        5,
        5,
    ]  # the last is the row of the step after the call


def test_inputs_say_where_each_sequence_is() -> None:
    executor = Recorder()
    under_test = runner(executor)
    a, b = under_test.open(), under_test.open()
    under_test.forward([Step(a, [1, 2, 3]), Step(b, [4])])
    under_test.forward([Step(b, [5, 6], 2), Step(a, [7])])
    call = executor.calls[-1]
    order = call["lengths"].tolist()
    assert sorted(order) == [1, 3]
    row = order.index(1)
    assert call["ids"][row].tolist() == [5, 6]
    assert call["positions"][row].tolist() == [1, 2]
    assert call["positions"][1 - row].tolist() == [3, 4]
    assert sorted(call["logit_rows"].tolist()) == sorted([2 * row, 2 * row + 1, 2 * (1 - row)])


def test_an_empty_past_and_no_rows_are_empty_arrays() -> None:
    executor = Recorder()
    under_test = runner(executor)
    under_test.forward([Step(under_test.open(), [1, 2], 0)])
    assert executor.calls[0]["past_key_0"].shape[2] == 0
    assert executor.calls[0]["logit_rows"].shape == (0,)


def test_an_executor_may_refuse_empty_arrays() -> None:
    executor = Recorder(empty_rows=False, empty_past=False)
    under_test = runner(executor)
    seq = under_test.open()
    result = under_test.forward([Step(seq, [1, 2], 0)])[0]
    assert executor.calls[0]["past_key_0"].shape[2] == 1
    assert executor.calls[0]["lengths"].tolist() == [0]
    assert executor.calls[0]["logit_rows"].tolist() == [0]
    assert result.logits is None
    hidden = under_test.forward([Step(seq, [1, 2], 1, "hidden")])[0].hidden
    assert hidden is not None
    assert hidden.shape == (1, CONFIG.hidden_size)


@pytest.mark.parametrize("shorten", [False, True])
def test_a_step_that_fails_changes_nothing(shorten: bool) -> None:
    executor = Recorder()
    under_test = runner(executor)
    a, b = under_test.open(), under_test.open()
    under_test.forward([Step(a, [1, 2, 3])])
    before = under_test.capacity()
    executor.fail_at, executor.shorten = (0, True) if shorten else (3, False)  # the second of two calls
    with pytest.raises(BackendError, match="expected" if shorten else "the engine died"):
        under_test.forward([Step(a, [4]), Step(b, [1] * 100)])
    assert (under_test.length(a), under_test.length(b)) == (3, 0)
    assert under_test.capacity() == before


@pytest.mark.parametrize("output", ["logits", "hidden", "new"])
def test_answers_of_another_shape_or_without_numbers_are_errors(output: str) -> None:
    executor = Recorder()
    under_test = runner(executor)
    seq = under_test.open()
    step = Step(seq, [1, 2], 2, "hidden" if output == "hidden" else "logits")
    for change, words in ((lambda x: x * np.nan, "holds NaN"), (lambda x: x[..., :-1], "has shape")):
        executor.spoil = output, change
        with pytest.raises(BackendError, match=f"'{output}' {words}"):
            under_test.forward([step])
        assert under_test.length(seq) == 0
    executor.spoil = None
    assert under_test.forward([step])
    assert under_test.length(seq) == 2


def test_a_parked_sequence_leaves_its_row_to_others() -> None:
    executor = Recorder()
    under_test = runner(executor)
    seqs = [under_test.open() for _ in range(4)]
    for ids in ([1, 2], [3]):
        under_test.forward([Step(seq, ids) for seq in seqs])
    under_test.park(seqs[1])
    under_test.forward([Step(seqs[i], [4]) for i in (0, 2, 3)])
    assert executor.calls[-1]["ids"].shape[0] == 3
    fork = under_test.fork(seqs[1], 3)
    under_test.forward([Step(fork, [9])])
    assert executor.calls[-1]["past_key_0"][0, 0, :3, 0].tolist() == [1, 2, 3]


def test_closing_closes_the_executor() -> None:
    executor = Recorder()
    under_test = runner(executor)
    under_test.forward([Step(under_test.open(), [1])])
    under_test.close()
    assert executor.calls == []
