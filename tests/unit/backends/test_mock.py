from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.backends.base import LoadOptions, Runner, Step
from ernie_accel.backends.mock import MockBackend, MockOptions
from ernie_accel.errors import ArgumentError, CapacityError
from ernie_accel.testing import synthetic, tiny_config

END = 2


def opened(options: MockOptions | None = None, memory_limit: int | None = None) -> Runner:
    load = LoadOptions(backend_options=options, memory_limit=memory_limit)
    return MockBackend().open(synthetic(tiny_config()), load)


def greedy(runner: Runner, prompt: list[int], count: int) -> list[int]:
    seq, ids = runner.open(), list(prompt)
    for _ in range(count):
        logits = runner.forward([Step(seq, ids[runner.length(seq) :])])[0].logits
        assert logits is not None
        ids.append(int(logits[0].argmax()))
    return ids[len(prompt) :]


def test_a_reply_follows_every_prompt_and_ends() -> None:
    runner = opened(MockOptions(reply=[5, 6, 5, 6, 7]))
    assert greedy(runner, [9], 7) == [5, 6, 5, 6, 7, END, 5]
    assert greedy(runner, [1, 2, 3], 6) == [5, 6, 5, 6, 7, END]


def test_a_prompt_that_ends_like_the_reply_begins_goes_on_with_it() -> None:
    assert greedy(opened(MockOptions(reply=[5, 6, 7])), [9, 5, 6], 2) == [7, END]


def test_replies_answer_exact_prompts_and_reply_the_rest() -> None:
    runner = opened(MockOptions(replies={(1, 2): [3, 4]}, reply=[9]))
    assert greedy(runner, [1, 2], 3) == [3, 4, END]
    assert greedy(runner, [1], 2) == [9, END]
    assert greedy(runner, [0, 1, 2], 2) == [9, END]


def test_without_a_reply_tokens_depend_on_the_ids_and_never_end() -> None:
    runner = opened()
    first = greedy(runner, [1, 2, 3], 200)
    assert first == greedy(runner, [1, 2, 3], 200)
    assert first != greedy(runner, [1, 2, 4], 200)
    assert END not in first
    assert len(set(first)) > 50


def test_certainty_is_the_gap_between_logits() -> None:
    runner = opened(MockOptions(reply=[5], certainty=1.5))
    logits = runner.forward([Step(runner.open(), [9])])[0].logits
    assert logits is not None
    assert logits.dtype == np.float32
    assert logits[0, [5, 6, 7, 4]].tolist() == [0.0, -1.5, -3.0, -1.5 * 127]


def test_steps_can_take_time() -> None:
    runner = opened(MockOptions(step_seconds=0.05))
    start = time.perf_counter()
    runner.forward([Step(runner.open(), [1])])
    assert time.perf_counter() - start >= 0.05


def test_memory_limit_is_a_number_of_tokens() -> None:
    need = MockBackend().estimate(tiny_config(), LoadOptions())
    runner = opened(memory_limit=3 * need.kv_per_token)
    seq = runner.open()
    runner.forward([Step(seq, [1, 2, 3])])
    with pytest.raises(CapacityError):
        runner.forward([Step(seq, [4])])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_any_precision_is_taken(precision: str) -> None:
    options = LoadOptions(precision=precision)  # type: ignore[arg-type]
    assert MockBackend().open(synthetic(tiny_config()), options).info.precision == precision


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ArgumentError, match="certainty"):
        MockOptions(certainty=0)
    with pytest.raises(ArgumentError, match="step_seconds"):
        MockOptions(step_seconds=-1)
    with pytest.raises(ArgumentError, match="id 128"):
        opened(MockOptions(reply=[1, 128]))
    with pytest.raises(ArgumentError, match="MockOptions"):
        MockBackend().open(synthetic(tiny_config()), LoadOptions(backend_options="reply"))


def test_model_load_with_a_directory_and_with_a_virtual_checkpoint(tmp_path: Path) -> None:
    source = synthetic(tiny_config())
    source.write(tmp_path / "model")
    for path in (source, tmp_path / "model"):
        options = MockOptions(reply=[5, 6, 7])
        with ea.Model.load(path, backend="mock", backend_options=options) as model:
            for temperature in (0, 0.8):
                completion = model.generate([1, 2], max_tokens=9, temperature=temperature)
                assert completion.token_ids == (5, 6, 7, END)
                assert completion.finish_reason == "stop"


def test_the_tensors_of_a_published_shape_are_not_touched() -> None:
    with ea.Model.load(synthetic("300B-A47B"), backend="mock") as model:
        assert len(model.generate([1], max_tokens=3, temperature=0).token_ids) == 3


def test_a_reply_is_ids() -> None:
    for wrong in ({"reply": "text"}, {"reply": ["a"]}, {"replies": {(1,): "text"}}):
        with pytest.raises(ArgumentError, match="must be token ids"):
            MockOptions(**wrong)
