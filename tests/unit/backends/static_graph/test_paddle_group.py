"""Tensor parallelism on Paddle: parts that add up, and processes that never outlive a call that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.static_graph.paddle import PaddleBackend
from ernie_accel.backends.static_graph.paddle_group import PaddleGroupExecutor
from ernie_accel.errors import ArgumentError, BackendProcessError, ClosedError, UnsupportedError
from ernie_accel.export.paddle_package import installed_version
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.testing.conformance import Case, Subject, Tolerance
from tests.backends.chosen import of_an_executor

pytestmark = pytest.mark.skipif(installed_version() is None, reason="needs paddlepaddle")
POET = Path(__file__).parents[4] / "examples/poet/model"
IDS = [5, 1, 127, 64, 3, 3, 90, 126, 2, 0, 33]


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def all_gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(map(gone, pids)):
            return True
        time.sleep(0.02)
    return False


def open_runner(own: ea.PaddleOptions | None = None) -> tuple[Any, list[int]]:
    options = LoadOptions(precision="fp32", threads=2, tensor_parallel=2, backend_options=own)
    runner = PaddleBackend().open(synthetic(tiny_config()), options)
    assert isinstance(runner._executor, PaddleGroupExecutor)
    return runner, runner._executor.pids


@pytest.fixture
def group() -> Iterator[tuple[Any, list[int]]]:
    runner, pids = open_runner()
    yield runner, pids
    runner.close()
    assert all_gone(pids)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(num_key_value_heads=1, vocab_size=131, tie_word_embeddings=False),
        tiny_config(True, num_key_value_heads=1, vocab_size=131),
    ],
    ids=["dense", "one-key-head-odd-vocabulary", "moe"],
)
def test_logits_are_those_of_one_process(config: ModelConfig, ranks: int) -> None:
    source = synthetic(config, seed=3)
    with ea.Model.load(source, backend="reference") as model:
        logits = model.logits(IDS)
        texts = [model.generate(ids, max_tokens=6, temperature=0).token_ids for ids in (IDS[:4], IDS)]
    with ea.Model.load(source, backend="paddle", precision="fp32", tensor_parallel=ranks) as model:
        assert model.plan.degrees.tensor == ranks
        assert model.plan.fits
        found = model.logits(IDS)
        together = model.generate([IDS[:4], IDS], max_tokens=6, temperature=0)
    assert found.shape == logits.shape
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4)
    assert [completion.token_ids for completion in together] == texts


SUBJECT = Subject(
    backend=PaddleBackend(),
    options=LoadOptions(precision="fp32", threads=2, tensor_parallel=2),
    tolerance=Tolerance(absolute=1e-4),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [case for case in of_an_executor() if "draft" not in str(case) and not str(case).endswith("odd")],
    ids=str,
)
def test_conformance(case: Case) -> None:
    if reason := case.skip_reason(SUBJECT):
        pytest.skip(reason)
    case.run(SUBJECT)


@pytest.mark.skipif(not (POET / "model.safetensors").exists(), reason="examples/poet/model has no weights")
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_poet_writes_the_same(ranks: int) -> None:
    texts = []
    for parallel in (1, ranks):
        with ea.Model.load(POET, backend="paddle", precision="fp32", tensor_parallel=parallel) as model:
            texts.append(model.generate("床前明月光，", max_tokens=40, temperature=0).text)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_every_call(group: tuple[Any, list[int]], victim: int) -> None:
    runner, pids = group
    seq = runner.open()
    runner.forward([Step(seq, IDS)])
    os.kill(pids[victim], signal.SIGKILL)
    with pytest.raises(BackendProcessError, match=rf"rank {victim} of 2 .*signal 9") as ended:
        runner.forward([Step(seq, [1])])
    assert ended.value.exit_code == -9
    assert all_gone(pids)
    with pytest.raises(BackendProcessError, match=rf"rank {victim} of 2"):
        runner.forward([Step(seq, [1])])
    assert runner.length(seq) == len(IDS)


def test_a_rank_that_is_killed_during_generation_ends_it(tmp_path: Path) -> None:
    source = synthetic(tiny_config(max_position_embeddings=100_000))
    with ea.Model.load(source, backend="paddle", precision="fp32", tensor_parallel=2) as model:
        pids = _children()
        stream = model.stream(IDS, max_tokens=90_000, ignore_eos=True)
        next(iter(stream))
        began = time.monotonic()
        threading.Timer(0.2, os.kill, (pids[1], signal.SIGKILL)).start()
        with pytest.raises(BackendProcessError, match="signal 9"):
            for _ in stream:
                pass
        assert time.monotonic() - began < 10
        assert all_gone(pids)


def _children() -> list[int]:
    """Processes of ranks that this one has started, the first first."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            line = (path / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid() and b"paddle_rank" in line:
            found.append(int(path.name))
    return sorted(found)


def test_a_rank_that_hangs_is_ended() -> None:
    runner, pids = open_runner(own=ea.PaddleOptions(step_timeout=5))
    seq = runner.open()
    runner.forward([Step(seq, IDS)])
    os.kill(pids[1], signal.SIGSTOP)
    with pytest.raises(BackendProcessError, match="did not compute a step within"):
        runner.forward([Step(seq, [1])])
    assert all_gone(pids)
    runner.close()


def test_closing_leaves_nothing_and_later_calls_say_so(group: tuple[Any, list[int]]) -> None:
    runner, pids = group
    seq = runner.open()
    runner.forward([Step(seq, IDS)])
    runner.close()
    runner.close()
    assert all_gone(pids)
    with pytest.raises(ClosedError):
        runner.forward([Step(seq, [1])])


OWNER = """
import time
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.static_graph.paddle import PaddleBackend
from ernie_accel.testing import synthetic, tiny_config

runner = PaddleBackend().open(synthetic(tiny_config()), LoadOptions(precision="fp32", threads=2, tensor_parallel=2))
print(*runner._executor.pids, flush=True)
time.sleep(600)
"""


def test_ranks_do_not_outlive_who_started_them() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.kill()
    assert all_gone(pids)


def test_what_cannot_be_divided_is_refused() -> None:
    source = synthetic(tiny_config())
    with pytest.raises(ArgumentError, match="ranks=3: it does not divide 4 query heads"):
        ea.Model.load(source, backend="paddle", tensor_parallel=3)
    with pytest.raises(UnsupportedError, match="device='gpu'"):
        ea.Model.load(source, backend="paddle", tensor_parallel=2, device="gpu")
    with pytest.raises(UnsupportedError, match=r"splits no model; .*paddle"):
        ea.Model.load(source, backend="reference", tensor_parallel=2)
