"""The backend ``paddle``: its settings against a Paddle that only records, and what only a real one can show."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel import PaddleOptions, system
from ernie_accel.architecture import published_config
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.static_graph import paddle as backend_module
from ernie_accel.backends.static_graph.paddle import PaddleBackend
from ernie_accel.backends.static_graph.paddle_settings import (
    Target,
    check_device_options,
    make_config,
    sample_inputs,
    to_tensorrt,
)
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.errors import ArgumentError, BackendError, UnsupportedError
from ernie_accel.export.paddle_package import installed_version
from ernie_accel.export.signature import Signature
from ernie_accel.testing.synthetic import SyntheticCheckpoint
from ernie_accel.testing.tiny import tiny_config

needs_paddle = pytest.mark.skipif(installed_version() is None, reason="needs paddlepaddle")
SIGNATURE = Signature.of(tiny_config(), "fp32")
PROGRAM = Path("/models/model.json")


class Recorder:
    """Notes every method that is called on it, with its arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.calls: list[tuple[Any, ...]] = [arguments]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))


def fake_paddle(*, gpus: int = 0, bfloat16: bool = True) -> Any:
    kinds = SimpleNamespace(Float32="Float32", Half="Half", Bfloat16="Bfloat16")
    return SimpleNamespace(
        is_compiled_with_cuda=lambda: gpus > 0,
        device=SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: gpus)),
        base=SimpleNamespace(core=SimpleNamespace(supports_bfloat16=lambda: bfloat16)),
        inference=SimpleNamespace(Config=Recorder, PrecisionType=kinds),
    )


def configured(target: Target, options: PaddleOptions | None = None) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = make_config(
        fake_paddle(), PROGRAM, target, options or PaddleOptions()
    ).calls
    assert calls[:2] == [("/models/model.json", "/models/model.pdiparams"), ("disable_glog_info",)]
    return calls[2:]


# Settings.


def test_not_installed_is_said_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "installed_version", lambda: None)
    status = PaddleBackend().available()
    assert not status.ok
    assert "not installed" in status.reason
    assert "pip install 'ernie-accel[paddle]'" in status.next_step


def test_an_old_version_is_said_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "installed_version", lambda: "2.6.2")
    status = PaddleBackend().available()
    assert (status.ok, "2.6.2 is too old" in status.reason) == (False, True)
    assert "pip install" in status.next_step


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_step_tokens": 0},
        {"onednn": "yes"},
        {"tensorrt": 1},
        {"gpu_memory": 0},
        {"tensorrt_workspace": True},
        {"tensorrt_profile": ((1, 1, 1), (1, 1, 1))},
        {"tensorrt_profile": ((1, 1, 1), (4, 1, 1), (2, 8, 8))},
        {"tensorrt_profile": ((0, 1, 1), (1, 1, 1), (2, 8, 8))},
        {"tensorrt_profile": ((1, 2, 1), (1, 2, 1), (2, 8, 8))},
        {"tensorrt_profile": ((1, 1, 1), (1, 1, 1), (2, 8, 8)), "tensorrt": False},
        {"tensorrt_workspace": 5},
    ],
)
def test_options_check_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        PaddleOptions(**wrong)


def test_on_a_cpu_only_products_are_left_to_onednn() -> None:
    calls = configured(Target("cpu", 0, "fp32", threads=3))
    assert calls == [
        ("disable_gpu",),
        ("set_cpu_math_library_num_threads", 3),
        ("enable_mkldnn",),
        ("set_mkldnn_cache_capacity", 0),
        ("delete_pass", "onednn_placement_pass"),
    ]
    assert configured(Target("cpu", 0, "bf16", threads=3)) == [*calls, ("enable_mkldnn_bfloat16",)]


def test_without_onednn_there_is_no_bf16() -> None:
    plain = PaddleOptions(onednn=False)
    assert configured(Target("cpu", 0, "fp32", threads=1), plain)[-1] == ("disable_mkldnn",)
    with pytest.raises(UnsupportedError, match="onednn=False"):
        configured(Target("cpu", 0, "bf16", threads=1), plain)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "Float32"), ("fp16", "Half"), ("bf16", "Bfloat16")])
def test_on_a_gpu_paddle_computes_in_the_precision(precision: str, kind: str) -> None:
    assert configured(Target("gpu", 1, precision, threads=1), PaddleOptions(gpu_memory=512)) == [
        ("enable_use_gpu", 512, 1, kind)
    ]


@pytest.mark.parametrize("device", ["gpu", "gpu:1", "cuda:1"])
def test_devices(device: str) -> None:
    target = Target.of(fake_paddle(gpus=2), device, "fp16", threads=1)
    assert (target.device, target.number) == ("gpu", 1 if ":" in device else 0)


@pytest.mark.parametrize(
    ("device", "precision", "gpus", "says"),
    [
        ("gpu", "fp32", 0, "built without CUDA; install paddlepaddle-gpu"),
        ("gpu:2", "fp32", 2, "Paddle sees 2 GPUs"),
        ("npu", "fp32", 0, "has cpu and gpu"),
        ("gpu:x", "fp32", 1, "has cpu and gpu"),
        ("cpu:1", "fp32", 0, "has cpu and gpu"),
        ("cpu", "fp16", 0, "on a GPU only"),
    ],
)
def test_devices_and_precisions_that_are_not_there(device: str, precision: str, gpus: int, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        Target.of(fake_paddle(gpus=gpus), device, precision, threads=1)


def test_bf16_is_refused_where_the_processor_lacks_it() -> None:
    with pytest.raises(UnsupportedError, match="AVX-512"):
        Target.of(fake_paddle(bfloat16=False), None, "bf16", threads=1)


# TensorRT.


class FakeConverter:
    """Stands for ``paddle.tensorrt``, as its documentation describes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.error = error
        self.converted: list[tuple[str, Any]] = []
        export = ModuleType("paddle.tensorrt.export")
        modes = SimpleNamespace(FP32="FP32", FP16="FP16", BF16="BF16")
        vars(export).update(Input=SimpleNamespace, PrecisionMode=modes, TensorRTConfig=self._config)
        self.paddle = ModuleType("paddle")
        package = ModuleType("paddle.tensorrt")
        vars(package).update(export=export, convert=self._convert)
        scope = SimpleNamespace(Scope=object, scope_guard=lambda scope: _Nothing())
        vars(self.paddle).update(tensorrt=package, static=scope)
        for module in (self.paddle, package, export):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    @staticmethod
    def _config(inputs: list[Any], **settings: Any) -> Any:
        return SimpleNamespace(inputs=inputs, **settings)

    def _convert(self, path: str, config: Any) -> None:
        if self.error:
            raise self.error
        self.converted.append((path, config))


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_tensorrt_is_given_the_profile_as_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeConverter(monkeypatch)
    target, limits = Target("gpu", 0, "fp16", threads=1), (4, 16, 64)
    options = PaddleOptions(tensorrt=True, tensorrt_workspace=1 << 20)
    profile = to_tensorrt(fake.paddle, PROGRAM, Path("/scratch/new.json"), SIGNATURE, target, options, limits)
    assert profile == ((1, 1, 1), (1, 1, 64), limits)
    [(path, config)] = fake.converted
    assert (path, config.save_model_dir) == ("/models/model", "/scratch/new")
    assert (config.precision_mode, config.workspace_size) == ("FP16", 1 << 20)
    assert [item.name for item in config.inputs] == list(SIGNATURE.input_names)
    shapes = {item.name: [sample.shape for sample in item.warmup_data] for item in config.inputs}
    assert shapes["ids"] == [(1, 1), (1, 1), (4, 16)]
    assert [shape[2] for shape in shapes["past_key_0"]] == [1, 64, 64]


def test_a_profile_must_hold_the_steps_that_will_come(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, target = FakeConverter(monkeypatch), Target("gpu", 0, "fp16", threads=1)
    profile = (1, 1, 1), (1, 1, 64), (2, 16, 64)
    options = PaddleOptions(tensorrt=True, tensorrt_profile=profile)
    scratch = Path("/scratch/new.json")
    assert to_tensorrt(fake.paddle, PROGRAM, scratch, SIGNATURE, target, options, (32, 16, 64)) == profile
    for limits in ((1, 17, 64), (1, 16, 65)):
        with pytest.raises(ArgumentError, match="tensorrt_profile: ends at"):
            to_tensorrt(fake.paddle, PROGRAM, scratch, SIGNATURE, target, options, limits)


@pytest.mark.parametrize(
    ("device", "own", "words"),
    [("cpu", {"gpu_memory": 512}, "gpu_memory=512"), ("gpu", {"onednn": False}, "onednn=False")],
)
def test_options_of_the_other_device_are_refused(device: str, own: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"{words}: means nothing on the {device}"):
        check_device_options(PaddleOptions(**own), Target(device, 0, "fp32", threads=1))


def test_a_converter_that_fails_or_is_missing_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target, options = Target("gpu", 0, "fp32", threads=1), PaddleOptions(tensorrt=True)
    arguments = (PROGRAM, Path("/scratch/new.json"), SIGNATURE, target, options, (1, 1, 1))
    fake = FakeConverter(monkeypatch, error=RuntimeError("no such layer"))
    with pytest.raises(BackendError, match="no such layer"):
        to_tensorrt(fake.paddle, *arguments)
    monkeypatch.setitem(sys.modules, "paddle.tensorrt.export", None)
    with pytest.raises(UnsupportedError, match="no TensorRT converter"):
        to_tensorrt(fake.paddle, *arguments)


def test_samples_have_the_shapes_and_dtypes_of_the_signature() -> None:
    inputs = sample_inputs(SIGNATURE, (2, 3, 5))
    assert list(inputs) == list(SIGNATURE.input_names)
    assert inputs["positions"].tolist() == [[5, 6, 7]] * 2
    assert inputs["past_value_1"].shape == (2, SIGNATURE.kv_heads, 5, SIGNATURE.head_dim)
    assert all(value.dtype == np.int64 for name, value in inputs.items() if not name.startswith("past_"))


# With Paddle itself.


@needs_paddle
def test_gpu_and_tensorrt_are_refused_on_a_build_without_them() -> None:
    backend = PaddleBackend()
    checkpoint = ea.testing.synthetic(tiny_config())
    options = LoadOptions(device="gpu")
    if _compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")
    with pytest.raises(UnsupportedError, match="built without CUDA"):
        backend.open(checkpoint, options)
    options = LoadOptions(backend_options=PaddleOptions(tensorrt=True))
    with pytest.raises(UnsupportedError, match="runs on a GPU"):
        backend.open(checkpoint, options)


@needs_paddle
def test_matrices_are_laid_out_for_few_and_many_rows_and_not_for_each_shape() -> None:
    """By default Paddle keeps them, laid out anew, for each shape of the inputs: here 30 times 64 MB."""
    config = replace(tiny_config(), vocab_size=16384, hidden_size=1024)
    checkpoint = ea.testing.synthetic(config)
    runner = PaddleBackend().open(checkpoint, LoadOptions(max_batch=4))
    seq = runner.open()
    runner.forward([Step(seq, [0], 1)])
    runner.forward([Step(seq, range(20), 20)])
    before = system.peak_memory()
    for count in range(2, 32):
        runner.truncate(seq, 0)
        runner.forward([Step(seq, range(count), count)])
    runner.close()
    assert system.peak_memory() - before < 256 << 20


@needs_paddle
def test_two_models_in_one_process_keep_their_own_weights() -> None:
    """oneDNN's matrices are kept under the names of parameters, which are the same in both."""
    ids = list(range(5))
    found = {}
    for seed in (0, 1):
        checkpoint = ea.testing.synthetic(tiny_config(), seed=seed)
        with ea.Model.load(checkpoint, backend="reference") as model:
            found[seed] = model.logits(ids)
    runners = [
        PaddleBackend().open(ea.testing.synthetic(tiny_config(), seed=seed), LoadOptions()) for seed in found
    ]
    for _ in range(2):
        for seed, runner in enumerate(runners):
            seq = runner.open()
            logits = runner.forward([Step(seq, ids, 5)])[0].logits
            assert logits is not None
            np.testing.assert_allclose(logits, found[seed], atol=1e-4)
            runner.free(seq)
    for runner in runners:
        runner.close()


class OneExpertIsWrong(SyntheticCheckpoint):
    """Expert 3 has weights that are no numbers, and no row chooses it."""

    def tensor(self, name: str) -> Tensor:
        found = super().tensor(name)
        data = found.data.copy()
        if name.endswith("e_score_correction_bias"):
            data[..., 3] = -100
        elif ".experts.3." in name:
            data[...] = np.nan
        return Tensor(data, found.dtype)


@needs_paddle
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_that_no_row_chose_are_not_computed(precision: Any) -> None:
    source = OneExpertIsWrong(tiny_config(True), "tiny", 0, "float32")
    with ea.Model.load(source, backend="paddle", precision=precision) as model:
        for count in (1, 9):
            assert np.isfinite(model.logits(list(range(count)))).all()


@needs_paddle
def test_without_onednn_the_results_are_the_same() -> None:
    checkpoint = ea.testing.synthetic(tiny_config())
    with ea.Model.load(checkpoint, backend="reference") as model:
        expected = model.logits(list(range(7)))
    with ea.Model.load(checkpoint, backend="paddle", backend_options=PaddleOptions(onednn=False)) as model:
        np.testing.assert_allclose(model.logits(list(range(7))), expected, atol=1e-4)


@needs_paddle
def test_what_paddle_refuses_becomes_an_error_of_ours() -> None:
    runner = PaddleBackend().open(ea.testing.synthetic(tiny_config()), LoadOptions())
    executor = runner._executor
    inputs = dict(sample_inputs(SIGNATURE, (1, 2, 3)))
    assert executor.run(inputs)["logits"].shape[0] == 2
    inputs["past_key_0"] = inputs["past_key_0"][:, :, :, :-1].copy()
    with pytest.raises(BackendError, match="Paddle Inference"):
        executor.run(inputs)
    runner.close()
    runner.close()


def _compiled_with_cuda() -> bool:
    from ernie_accel.export.paddle_package import import_paddle

    return bool(import_paddle().is_compiled_with_cuda())


def test_onednn_lays_matrices_out_anew_and_parameters_are_loaded_in_fp32() -> None:
    """0.3B, measured: fp32 1,376 MiB, then as much for few rows and 972 for many; bf16 688 beside the plain 1,376."""
    config = published_config("0.3B")

    def found(precision: Any, **rest: Any) -> Any:
        options = LoadOptions(
            precision=precision, max_context=512, max_batch=rest.pop("max_batch", 1), **rest
        )
        return PaddleBackend().estimate(config, options)

    wide, narrow = found("fp32"), found("bf16")
    plain = found("fp32", backend_options=PaddleOptions(onednn=False))
    assert (wide.scratch - plain.scratch) / 2**20 == pytest.approx(1376 + 972, abs=2)
    assert (narrow.scratch - plain.scratch) / 2**20 == pytest.approx(688, abs=2)
    assert (narrow.runtime - wide.runtime) / 2**20 == pytest.approx(688, abs=2)
    assert wide.runtime == plain.runtime == backend_module.PACKAGE_BYTES
    assert found("fp32", max_batch=4).scratch == wide.scratch
    assert (found("fp32", max_batch=16).scratch - wide.scratch) / 2**20 == pytest.approx(404, abs=2)
    assert found("fp32", device="gpu").scratch == plain.scratch
