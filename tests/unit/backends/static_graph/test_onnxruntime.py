"""What the backend says about itself and refuses; what it computes is the conformance suite's business."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest

from ernie_accel import plan
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.static_graph.onnxruntime import SILENT, OnnxRuntimeBackend, OnnxRuntimeOptions
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.errors import ArgumentError, BackendError, CapacityError, UnsupportedError
from ernie_accel.export.step import Fusions
from ernie_accel.exporting import export_graph
from ernie_accel.testing.synthetic import synthetic
from ernie_accel.testing.tiny import tiny_config


def open_tiny(**options: Any) -> Any:
    pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    pytest.importorskip("onnx", reason="the extra onnxruntime is not installed")
    with synthetic(tiny_config()) as checkpoint:
        return OnnxRuntimeBackend().open(checkpoint, LoadOptions(**options))


@pytest.mark.parametrize(
    ("installed", "reason", "step"),
    [
        ({}, "onnxruntime is not installed", "pip install 'ernie-accel[onnxruntime]'"),
        ({"onnxruntime": "1.9.0"}, "onnxruntime 1.9.0 is too old: 1.17 is needed", "pip install --upgrade"),
    ],
)
def test_what_is_missing_is_said_with_the_next_step(
    installed: dict[str, str], reason: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    answer = OnnxRuntimeBackend().available()
    assert not answer.ok
    assert reason in answer.reason
    assert step in answer.next_step


def test_without_onnx_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.30.0")
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert "onnx is not installed" in OnnxRuntimeBackend().available().reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_step_tokens": 0}, "max_step_tokens=0: must be"),
        ({"int8_block": 16}, "int8_block=16: must be 32, 64 or 128"),
        ({"spin": 1}, "spin=1: must be True or False"),
    ],
)
def test_options_check_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        OnnxRuntimeOptions(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"device": "tpu"},
            UnsupportedError,
            "device='tpu': backend 'onnxruntime' has cpu, gpu, cuda, tensorrt",
        ),
        ({"device": "cuda:x"}, UnsupportedError, "cuda:1 for the second"),
        ({"device": "cpu:1"}, UnsupportedError, "device='cpu:1'"),
        ({"precision": "int4"}, UnsupportedError, "precision='int4'.*offered by .*native"),
        ({"precision": "fp16"}, UnsupportedError, "would convert to fp32; use fp32"),
        ({"kv_precision": "int8"}, UnsupportedError, "keeps keys and values in fp32"),
        ({"tensor_parallel": 2}, UnsupportedError, "cannot be split; use 1"),
        ({"max_context": 0}, ArgumentError, "max_context=0"),
        ({"max_batch": 0}, ArgumentError, "max_batch=0"),
        ({"threads": 5000}, ArgumentError, "threads=5000"),
        ({"memory_limit": 1}, CapacityError, "one token of KV cache takes"),
        ({"backend_options": 3}, ArgumentError, "takes OnnxRuntimeOptions"),
    ],
)
def test_what_it_lacks_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_tiny(**options)


def test_a_device_that_this_build_lacks_is_named_with_what_to_install() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has CUDA")
    with pytest.raises(UnsupportedError, match="install onnxruntime-gpu"):
        open_tiny(device="cuda")


def test_old_versions_have_no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(UnsupportedError, match=r"onnxruntime 1\.20\.1 has no fast int8 products, 1\.22 has"):
        open_tiny(precision="int8")


def test_info_names_engine_threads_and_device() -> None:
    runner = open_tiny(threads=1)
    details = runner.info.details
    assert details["engine"].startswith("onnxruntime 1.")
    assert (details["threads"], details["device"]) == (1, "cpu")
    assert (runner.info.precision, runner.info.kv_precision) == ("fp32", "fp32")
    runner.close()


def test_what_the_engine_says_is_a_backend_error() -> None:
    runner = open_tiny()
    executor = runner._executor
    with pytest.raises(BackendError, match=r"onnxruntime .* failed"):
        executor.run({"ids": runner._signature})
    seq = runner.open()
    assert runner.forward([Step(seq, [1, 2])])[0].logits is not None
    runner.close()


def test_progress_counts_the_weights() -> None:
    seen: list[tuple[str, int, int]] = []
    open_tiny(progress=lambda *args: seen.append(args)).close()
    assert seen[-1][0] == "load"
    assert seen[-1][1] == seen[-1][2] > 0


def test_a_written_graph_takes_no_options_of_its_writing(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    with synthetic(tiny_config()) as checkpoint:
        export_graph(checkpoint, tmp_path / "graph", progress=False)
    for own in (OnnxRuntimeOptions(int8_block=64), OnnxRuntimeOptions(fusions=Fusions(qkv=False))):
        with (
            open_checkpoint(tmp_path / "graph") as exported,
            pytest.raises(ArgumentError, match="leave it out"),
        ):
            OnnxRuntimeBackend().open(exported, LoadOptions(backend_options=own))


def test_the_estimate_counts_both_keys_and_values() -> None:
    config = tiny_config()
    need = OnnxRuntimeBackend().estimate(config, LoadOptions())
    assert (
        need.kv_per_token >= 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    )


def test_the_estimate_counts_a_tied_head_again_and_what_loading_holds() -> None:
    """0.3B in fp32, measured: 3,390 MiB while loading, 1,843 at work; the table is looked up in, its head packed."""
    found = plan("0.3B", devices="cpu-64G", backend="onnxruntime", precision="fp32", max_context=256)
    assert found.loading == pytest.approx(3390 << 20, rel=0.03)
    tied = OnnxRuntimeBackend().estimate(tiny_config(), LoadOptions(precision="fp32"))
    int8 = OnnxRuntimeBackend().estimate(tiny_config(), LoadOptions(precision="int8"))
    config = tiny_config()
    assert tied.scratch - int8.scratch == 4 * config.vocab_size * config.hidden_size


def test_the_estimate_says_what_a_plan_shows() -> None:
    need = OnnxRuntimeBackend().estimate(
        tiny_config(), LoadOptions(backend_options=OnnxRuntimeOptions(max_step_tokens=96))
    )
    assert (need.step_tokens, need.kv_precision) == (96, "fp32")


def test_loading_leaves_no_file_no_connection_and_no_variable(tmp_path: Path) -> None:
    """ONNX Runtime 1.29 and newer report their use, with a file beside, unless that is forbidden as they load."""
    pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    program = (
        "import os; from ernie_accel.backends.static_graph.onnxruntime import _import_onnxruntime as load; "
        "before = dict(os.environ); load().SessionOptions(); assert dict(os.environ) == before"
    )
    variables = {name: value for name, value in os.environ.items() if name not in ("CI", *SILENT)}
    subprocess.run([sys.executable, "-c", program], env={**variables, "TMPDIR": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []
