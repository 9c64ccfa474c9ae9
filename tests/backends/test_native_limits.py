"""Limits of the native backend: memory known beforehand, numbers that nothing can hold, errors instead of aborts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ernie_accel.backends.base import LoadOptions, Runner, Select, Step
from ernie_accel.backends.registry import available, get
from ernie_accel.errors import ArgumentError, BackendError, CheckpointError
from ernie_accel.testing import SyntheticCheckpoint, synthetic, tiny_config

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

from ernie_accel import _native
from ernie_accel.backends.native.backend import NativeOptions
from ernie_accel.backends.native.runner import NativeRunner

DENSE = tiny_config()
MOE = tiny_config(moe=True)


def opened(**options: Any) -> Runner:
    return get("native").open(synthetic(DENSE), LoadOptions(memory_limit=1 << 20, **options))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_the_estimate_of_working_memory_is_exact(config: Any, threads: int, precision: Any) -> None:
    options = LoadOptions(
        precision=precision,
        threads=threads,
        memory_limit=1 << 20,
        backend_options=NativeOptions(max_step_tokens=48),
    )
    runner = get("native").open(synthetic(config), options)
    assert isinstance(runner, NativeRunner)
    model = runner._model
    assert model is not None
    assert get("native").estimate(config, options).scratch == model.scratch_bytes > 0


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: int) -> None:
    with pytest.raises(ArgumentError, match="threads"):
        opened(threads=threads)


@pytest.mark.parametrize("sequence", [0, -1, 99, 1 << 70, -(1 << 70), None, "1", 1.5])
def test_a_sequence_that_cannot_be_is_refused(sequence: Any) -> None:
    runner = opened()
    seq = runner.open()
    for call in (
        lambda: runner.length(sequence),
        lambda: runner.free(sequence),
        lambda: runner.fork(sequence, 0),
        lambda: runner.truncate(sequence, 0),
        lambda: runner.forward([Step(sequence, [1])]),
    ):
        with pytest.raises(ArgumentError):
            call()
    assert runner.length(seq) == 0


@pytest.mark.parametrize(
    "select", [Select(top_k=1 << 70), Select(top_k=-1), Select(seed=-1), Select(seed=1 << 64)], ids=str
)
def test_a_draw_that_cannot_be_is_refused(select: Select) -> None:
    runner = opened()
    seq = runner.open()
    with pytest.raises(ArgumentError):
        runner.forward([Step(seq, [1], output="select", select=select)])
    assert runner.length(seq) == 0


def test_ids_may_lie_anywhere_in_memory() -> None:
    runner = opened(precision="fp32")
    ids = np.arange(20, dtype=np.int32)
    found = set()
    for given in (list(range(19, -1, -2)), ids[::-2], ids.astype(">i8")[::-2]):
        logits = runner.forward([Step(runner.open(), given)])[0].logits
        assert logits is not None
        found.add(logits.tobytes())
    assert len(found) == 1


def test_seen_without_counts_is_a_prompt() -> None:
    runner = opened(precision="fp32")
    seen = np.array([3, 5], np.int32)
    drawn = []
    for counts in (None, np.zeros(2, np.int32)):
        select = Select(repetition_penalty=1.5, presence_penalty=1.0, seen=seen, counts=counts)
        drawn.append(runner.forward([Step(runner.open(), [1, 2], output="select", select=select)])[0])
    assert drawn[0].token_ids == drawn[1].token_ids


def test_an_empty_step_gives_nothing() -> None:
    assert opened().forward([]) == []


def poisoned(poison: str) -> SyntheticCheckpoint:
    """A checkpoint one of whose tensors holds NaN alone."""
    checkpoint = synthetic(DENSE)
    plain = checkpoint.tensor

    def tensor(name: str) -> Any:
        found = plain(name)
        if name != poison:
            return found
        return type(found)(data=np.full(found.data.shape, 0x7FC0, np.uint16), dtype="bfloat16")

    checkpoint.tensor = tensor  # type: ignore[method-assign]
    return checkpoint


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("poison", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
def test_norms_that_are_no_numbers_are_noticed_when_they_are_loaded(name: str, poison: str) -> None:
    with pytest.raises(CheckpointError, match=f"{poison}: holds NaN or infinity, first at index 0"):
        get(name).open(poisoned(poison), LoadOptions(precision="fp32", memory_limit=1 << 20))


def test_logits_that_are_no_numbers_are_an_error_and_the_sequence_stays() -> None:
    checkpoint = poisoned("model.layers.0.mlp.down_proj.weight")
    runner = get("native").open(checkpoint, LoadOptions(precision="fp32", memory_limit=1 << 20))
    seq = runner.open()
    with pytest.raises(BackendError, match="NaN"):
        runner.forward([Step(seq, [1], output="select", select=Select())])
    assert runner.length(seq) == 0


TOO_MANY_THREADS = """
import resource
from ernie_accel import BackendError
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.registry import get
from ernie_accel.testing import synthetic, tiny_config

checkpoint = synthetic(tiny_config())
get("native").open(checkpoint, LoadOptions(memory_limit=1 << 20, threads=1))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.RLIM_INFINITY))
try:
    get("native").open(checkpoint, LoadOptions(memory_limit=1 << 20, threads=1024))
except BackendError as error:
    assert "threads" in str(error), error
else:
    raise SystemExit(3)
get("native").open(checkpoint, LoadOptions(memory_limit=1 << 20, threads=2))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space, as Linux does")
def test_threads_that_do_not_start_are_an_error() -> None:
    run = subprocess.run([sys.executable, "-c", TOO_MANY_THREADS], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_weights_cannot_be_changed_once_complete() -> None:
    runner = opened()
    assert isinstance(runner, NativeRunner)
    assert runner._model is not None
    tensor = _native.Tensor(np.zeros(DENSE.hidden_size, np.float32), "float32")
    with pytest.raises(RuntimeError, match="complete"):
        runner._model.set_final_norm(tensor)


def test_an_estimate_for_threads_that_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match="threads"):
        get("native").estimate(DENSE, LoadOptions(threads=5000))


def test_claimed_pages_are_used_and_can_be_computed_after() -> None:
    runner = opened(max_context=64)
    assert isinstance(runner, NativeRunner)
    seq = runner.open()
    runner.claim(seq, 40)
    assert runner.length(seq) == 40
    assert runner.capacity().used_tokens == 48
    (result,) = runner.forward([Step(seq, [1])])
    assert result.logits is not None
    assert np.isfinite(result.logits).all()
    with pytest.raises(ArgumentError, match="the context holds 64"):
        runner.claim(seq, 24)
    assert runner.length(seq) == 41


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("multi_token", [False, True], ids=["", "mtp"])
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_the_estimate_of_weights_is_exact(config: Any, precision: Any, multi_token: bool) -> None:
    config = replace(config, num_nextn_predict_layers=int(multi_token))
    options = LoadOptions(precision=precision, memory_limit=1 << 20, multi_token=multi_token)
    runner = get("native").open(synthetic(config), options)
    assert isinstance(runner, NativeRunner)
    assert runner._model is not None
    weights = get("native").estimate(config, options).weights
    assert weights is not None
    moe_layers = sum(config.is_moe_layer(index) for index in range(config.num_hidden_layers))
    biases = 4 * moe_layers * config.moe_num_experts  # which the core does not count
    assert sum(weights.values()) == runner._model.weight_bytes + biases
