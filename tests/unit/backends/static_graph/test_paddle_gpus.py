"""Tensor parallelism on GPUs: where the ranks go, what Paddle is asked, and what is refused before they start.

No GPU is needed: the parent asks a stand-in for Paddle, and ``rank_with_gpus.py`` is what its processes run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.static_graph import paddle as backend_module
from ernie_accel.backends.static_graph import paddle_group
from ernie_accel.backends.static_graph.paddle import PaddleBackend
from ernie_accel.backends.static_graph.paddle_devices import (
    check_device_memory,
    group_targets,
    rank_variables,
)
from ernie_accel.errors import ArgumentError, BackendProcessError, CapacityError, UnsupportedError
from ernie_accel.export.paddle_package import installed_version
from ernie_accel.testing import synthetic, tiny_config

needs_paddle = pytest.mark.skipif(installed_version() is None, reason="needs paddlepaddle")
RANK = Path(__file__).with_name("rank_with_gpus.py")
IDS = [5, 1, 127, 64, 3, 3, 90]


def gpu_paddle(*, gpus: int = 4, nccl: bool = True, memory: int = 80 << 30) -> Any:
    properties = SimpleNamespace(total_memory=memory)
    cuda = SimpleNamespace(device_count=lambda: gpus, get_device_properties=lambda number: properties)
    return SimpleNamespace(
        is_compiled_with_cuda=lambda: gpus > 0,
        device=SimpleNamespace(cuda=cuda),
        base=SimpleNamespace(
            core=SimpleNamespace(supports_bfloat16=lambda: True, is_compiled_with_nccl=lambda: nccl)
        ),
    )


@pytest.mark.parametrize(
    ("device", "numbers"), [("gpu", [0, 1]), ("cuda", [0, 1]), ("gpu:3,1", [3, 1]), ("cuda:2,3", [2, 3])]
)
def test_every_rank_has_a_gpu(device: str, numbers: list[int]) -> None:
    targets = group_targets(gpu_paddle(), device, "bf16", 8, 2)
    assert [(target.device, target.number, target.precision) for target in targets] == [
        ("gpu", number, "bf16") for number in numbers
    ]
    assert [target.name for target in targets] == [f"gpu:{number}" for number in numbers]
    assert [rank_variables(target) for target in targets] == [
        {"PADDLE_DISTRI_BACKEND": "nccl", "FLAGS_selected_gpus": str(number)} for number in numbers
    ]


def test_on_a_cpu_ranks_share_the_threads_and_sum_by_gloo() -> None:
    targets = group_targets(gpu_paddle(gpus=0), None, "fp32", 8, 4)
    assert [(target.name, target.threads) for target in targets] == [("cpu", 2)] * 4
    assert rank_variables(targets[0]) == {"PADDLE_DISTRI_BACKEND": "gloo"}


@pytest.mark.parametrize(
    ("device", "paddle", "says"),
    [
        ("gpu", gpu_paddle(gpus=0), "built without CUDA"),
        ("gpu", gpu_paddle(gpus=1), "Paddle sees 1 GPUs here"),
        ("gpu:0,4", gpu_paddle(), "Paddle sees 4 GPUs here"),
        ("gpu:1", gpu_paddle(), "name 2 different GPUs, as in 'gpu:0,1'"),
        ("gpu:1,1", gpu_paddle(), "name 2 different GPUs"),
        ("gpu:0,1,2", gpu_paddle(), "name 2 different GPUs"),
        ("gpu:0,x", gpu_paddle(), "has cpu and gpu"),
        ("gpu", gpu_paddle(nccl=False), "built without NCCL"),
    ],
)
def test_gpus_that_are_not_there(device: str, paddle: Any, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        group_targets(paddle, device, "fp16", 2, 2)


def test_a_part_must_fit_its_gpu() -> None:
    paddle = gpu_paddle(memory=1000)
    targets = group_targets(paddle, "gpu:2,3", "fp16", 2, 2)
    check_device_memory(paddle, targets, 1000)
    with pytest.raises(
        CapacityError, match=r"GPU 2 has 1,000 bytes .* takes 1,001 .*greater tensor_parallel than 2"
    ):
        check_device_memory(paddle, targets, 1001)


def test_the_model_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    source, backend = synthetic(tiny_config()), PaddleBackend()
    monkeypatch.setattr(backend_module, "import_paddle", lambda: gpu_paddle(memory=1 << 10))
    options = LoadOptions(device="gpu", tensor_parallel=2, precision="fp16")
    with pytest.raises(CapacityError, match="GPU 0 has 1,024 bytes"):
        backend.open(source, options)
    with pytest.raises(ArgumentError, match="onednn=False: means nothing on the gpu"):
        backend.open(source, replace(options, backend_options=ea.PaddleOptions(onednn=False)))
    with pytest.raises(UnsupportedError, match="engines for one process"):
        backend.open(source, replace(options, backend_options=ea.PaddleOptions(tensorrt=True)))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have processes pretend to be on GPUs; return where they note what they were asked."""
    monkeypatch.setattr(backend_module, "import_paddle", gpu_paddle)
    monkeypatch.setattr(paddle_group, "PROGRAM", (str(RANK),))
    monkeypatch.setenv("NOTES_OF_GPUS", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


@needs_paddle
@pytest.mark.parametrize("config", [tiny_config(), tiny_config(True)], ids=["dense", "moe"])
def test_ranks_are_set_up_for_their_gpus_and_compute_together(notes: Path, config: ModelConfig) -> None:
    source = synthetic(config, seed=3)
    with ea.Model.load(source, backend="reference") as model:
        expected = model.logits(IDS)
    options = LoadOptions(
        precision="fp16",
        device="gpu:2,0",
        tensor_parallel=2,
        backend_options=ea.PaddleOptions(gpu_memory=512),
    )
    runner = PaddleBackend().open(source, options)
    assert runner.info.details["device"] == "gpu:2,0"
    logits = runner.forward([Step(runner.open(), IDS, len(IDS))])[0].logits
    runner.close()
    assert logits is not None
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    for rank, number in enumerate((2, 0)):
        lines = [json.loads(line) for line in (notes / f"rank-{rank}").read_text().splitlines()]
        variables = {
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_DISTRI_BACKEND": "nccl",
            "FLAGS_selected_gpus": str(number),
            "CUDA_VISIBLE_DEVICES": "4,5,6,7",
        }
        assert lines == [
            ["set_device", f"gpu:{number}"],
            ["init_parallel_env", variables],
            ["enable_use_gpu", 512, number, "Half"],
        ]


@needs_paddle
def test_a_killed_rank_ends_the_group(notes: Path) -> None:
    options = LoadOptions(precision="fp32", device="gpu", tensor_parallel=2)
    runner: Any = PaddleBackend().open(synthetic(tiny_config()), options)
    seq = runner.open()
    runner.forward([Step(seq, IDS)])
    os.kill(runner._executor.pids[1], signal.SIGKILL)
    with pytest.raises(BackendProcessError, match=r"rank 1 of 2 .*signal 9"):
        runner.forward([Step(seq, [1])])
    runner.close()
