"""What the three backends tell FastDeploy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ernie_accel import system
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.static_graph.fastdeploy_options import TensorRTOptions
from ernie_accel.backends.static_graph.fastdeploy_runtime import FastDeployOrtBackend
from ernie_accel.backends.static_graph.tensorrt import check_shapes, engine_profile
from ernie_accel.checkpoint.exported import ExportedCheckpoint
from ernie_accel.errors import ArgumentError, BackendProcessError, UnsupportedError
from ernie_accel.export.signature import Signature
from ernie_accel.testing.tiny import tiny_config
from tests.unit.backends.fastdeploy.fake import Fake, OpenVino, Ort, TensorRT


@pytest.fixture
def gpu(fake: Fake) -> Fake:
    fake.install_build("ON")
    fake.behave(tensorrt=True)
    return fake


def test_ort_is_chosen_and_no_other(fake: Fake) -> None:
    runner = fake.open(Ort(), threads=3)
    names = [name for name, *_ in fake.told()]
    assert "use_ort_backend" in names
    assert "use_cpu" in names
    assert not {"use_openvino_backend", "use_trt_backend", "use_gpu"} & set(names)
    assert fake.told_of("set_cpu_thread_num") == [[3, {}]]
    assert runner.info.backend == "fastdeploy-ort"
    assert runner.info.details["threads"] == 3
    assert runner.info.details["engine"] == "FastDeploy 1.0.7 (ort)"


@pytest.mark.parametrize(("precision", "isa"), [("fp32", "AVX512_CORE_VNNI"), ("bf16", None)])
def test_openvino_computes_in_the_precision_asked_for(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, precision: str, isa: str | None
) -> None:
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "DEFAULT")
    monkeypatch.setattr(system, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    runner = fake.open(OpenVino(), precision=precision)
    assert fake.told_of("environment")[0][0] == isa
    assert len(fake.told_of("use_openvino_backend")) == 1
    assert runner.info.precision == precision


def test_bf16_needs_a_processor_that_has_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "processor_flags", lambda: frozenset({"avx512f"}))
    with pytest.raises(UnsupportedError, match="AVX512-BF16"):
        fake.open(OpenVino(), precision="bf16")


def test_the_processor_is_read_from_the_system(tmp_path: Path) -> None:
    assert system.processor_flags(tmp_path) == frozenset()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\n")
    assert system.processor_flags(tmp_path) == {"fpu", "avx512_bf16"}


@pytest.mark.parametrize("backend", [Ort, OpenVino])
def test_the_cpu_ones_take_no_gpu(fake: Fake, backend: type[Ort]) -> None:
    with pytest.raises(UnsupportedError, match="runs on the cpu"):
        fake.open(backend(), device="gpu")


def test_the_other_python_computes(fake: Fake) -> None:
    fake.open()
    assert fake.told_of("environment")[0][1] == sys.executable  # which the program stands for


# TensorRT.


def test_tensorrt_settings(gpu: Fake) -> None:
    runner = gpu.open(TensorRT(), workspace=1 << 20, device="gpu:1")
    assert gpu.told_of("use_gpu") == [[1, {}]]
    assert len(gpu.told_of("use_trt_backend")) == 1
    shapes = {name: sizes for name, *sizes in gpu.told_of("set_shape")}
    assert shapes["ids"] == [[1, 1], [16, 512], [32, 1024]]
    assert shapes["positions"] == shapes["ids"]
    assert shapes["lengths"] == [[1], [16], [32]]
    heads, size = gpu.config.num_key_value_heads, gpu.config.head_dim
    assert shapes["past_key_0"] == [[1, heads, 1, size], [16, heads, 512, size], [32, heads, 2048, size]]
    assert gpu.told_of("enable_fp16") == [[True]]
    assert gpu.told_of("max_workspace_size") == [[1 << 20]]
    assert gpu.told_of("serialize_file") == []
    assert runner.info.precision == "fp16"
    assert runner.info.max_step_tokens == 512


def test_every_input_has_a_range(gpu: Fake) -> None:
    gpu.open(TensorRT())
    signature = Signature.of(gpu.config, "fp32")
    assert {name for name, *_ in gpu.told_of("set_shape")} == set(signature.input_names)


def test_tensorrt_computes_within_its_profile(gpu: Fake) -> None:
    runner = gpu.open(TensorRT(), profile={"input_ids": ((1, 1), (2, 4), (2, 8))})
    assert runner.info.max_step_tokens == 8
    first, second, third = runner.open(), runner.open(), runner.open()
    answers = runner.forward([Step(first, [1, 2]), Step(second, [3, 4]), Step(third, [5, 6])])
    assert [int(a.logits.argmax()) for a in answers if a.logits is not None] == [3, 5, 7]
    for _ in range(3):
        answers = runner.forward([Step(first, [7]), Step(second, [8]), Step(third, [9])])
    assert [int(a.logits.argmax()) for a in answers if a.logits is not None] == [8, 9, 10]


def test_ranges_ascend_where_steps_are_small(gpu: Fake) -> None:
    gpu.open(TensorRT(), max_step_tokens=8)
    shapes = {name: sizes for name, *sizes in gpu.told_of("set_shape")}
    assert shapes["logit_rows"] == [[1], [8], [8]]


def test_threads_mean_nothing_on_a_gpu(gpu: Fake) -> None:
    with pytest.raises(UnsupportedError, match="threads=2: backend 'tensorrt'"):
        gpu.open(TensorRT(), threads=2)


def test_a_place_for_the_engine_that_cannot_be_written(gpu: Fake) -> None:
    (gpu.folder / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"cache_file=.*cannot be written"):
        gpu.open(TensorRT(), cache_file=gpu.folder / "file/engine.trt")


def test_fp32(gpu: Fake) -> None:
    gpu.open(TensorRT(), precision="fp32")
    assert gpu.told_of("enable_fp16") == [[False]]


def test_shapes_outside_the_profile_are_refused_before_the_call() -> None:
    signature = Signature(
        layers=1,
        kv_heads=2,
        head_dim=4,
        hidden_size=8,
        vocab_size=16,
        precision="fp32",
        cache_dtype="float32",
    )
    profile = engine_profile(signature, TensorRTOptions())
    check_shapes({"ids": (32, 1024), "past_key_0": (32, 2, 2048, 4)}, profile)
    with pytest.raises(ArgumentError, match=r"'ids' of shape \(33, 1\) is outside"):
        check_shapes({"ids": (33, 1)}, profile)
    with pytest.raises(ArgumentError, match="'past_key_0'"):
        check_shapes({"past_key_0": (1, 2, 2049, 4)}, profile)


def test_a_context_beyond_the_profile_is_refused(gpu: Fake) -> None:
    profile = {"input_ids": ((1, 1), (1, 8), (4, 16)), "past_length": ((1,), (8,), (32,))}
    assert gpu.open(TensorRT(), profile=profile).info.max_context == 32
    with pytest.raises(ArgumentError, match="max_context=33: the profile's past_length ends at 32"):
        gpu.open(TensorRT(), profile=profile, max_context=33)


@pytest.mark.parametrize(
    "profile",
    [
        {"ids": ((1, 1), (2, 2), (3, 3))},
        {"input_ids": ((1, 1), (2, 2))},
        {"input_ids": ((0, 1), (2, 2), (3, 3))},
        {"input_ids": ((1, 4), (2, 2), (3, 3))},
        {"input_ids": ((1, 2), (2, 2), (3, 3))},
        {"past_length": ((2,), (2,), (3,))},
        {"past_length": ((1, 1), (2, 2), (3, 3))},
        {"input_ids": 7},
    ],
)
def test_a_profile_that_cannot_be_is_refused(profile: Any) -> None:
    with pytest.raises(ArgumentError, match="profile"):
        TensorRTOptions(profile=profile)


@pytest.mark.parametrize("values", [{"workspace": 0}, {"workspace": 1.5}, {"cache_file": 3}])
def test_other_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(values))):
        TensorRTOptions(**values)


def test_a_build_without_tensorrt_is_an_error(fake: Fake) -> None:
    fake.install_build("ON")  # says that it has it
    with pytest.raises(BackendProcessError, match="didn't compile with TrtBackend"):
        fake.open(TensorRT())


def test_an_engine_is_kept_and_found_again(gpu: Fake) -> None:
    cache = gpu.folder / "engines/tiny.trt"
    gpu.open(TensorRT(), cache_file=cache).close()
    assert cache.read_text() == "engine"
    assert json.loads(Path(f"{cache}.json").read_text())["precision"] == "fp16"
    assert sorted(path.name for path in cache.parent.iterdir()) == ["tiny.trt", "tiny.trt.json"]
    gpu.open(TensorRT(), cache_file=str(cache)).close()
    assert gpu.told_of("serialize_file")[1] == [str(cache)]
    assert len(gpu.told_of("engine read")) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [({"precision": "fp32"}, "another precision"), ({"max_step_tokens": 4}, "another profile")],
)
def test_an_engine_of_something_else_is_refused(gpu: Fake, change: dict[str, Any], words: str) -> None:
    cache = gpu.folder / "tiny.trt"
    gpu.open(TensorRT(), cache_file=cache).close()
    with pytest.raises(ArgumentError, match=words):
        gpu.open(TensorRT(), cache_file=cache, **change)


def test_an_engine_without_a_note_is_refused(gpu: Fake) -> None:
    cache = gpu.folder / "tiny.trt"
    cache.write_text("whose?")
    with pytest.raises(ArgumentError, match=r"tiny\.trt\.json, which says"):
        gpu.open(TensorRT(), cache_file=cache)


def test_a_building_that_fails_leaves_nothing(gpu: Fake) -> None:
    gpu.behave("abort at load", tensorrt=True)
    with pytest.raises(BackendProcessError):
        gpu.open(TensorRT(), cache_file=gpu.folder / "engines/tiny.trt")
    assert list((gpu.folder / "engines").iterdir()) == []


def test_int8_runs_an_engine_that_was_built_in_it(gpu: Fake) -> None:
    cache = gpu.folder / "int8.trt"
    with pytest.raises(UnsupportedError, match="trtexec --int8"):
        gpu.open(TensorRT(), precision="int8", cache_file=cache)
    cache.write_text("engine")
    runner = gpu.open(TensorRT(), precision="int8", cache_file=cache)
    assert runner.info.precision == "int8"
    assert gpu.told_of("serialize_file") == [[str(cache)]]
    assert len(gpu.told_of("engine read")) == 1


@pytest.mark.parametrize("device", ["cpu", "gpu:x", "npu"])
def test_tensorrt_takes_a_gpu_alone(gpu: Fake, device: str) -> None:
    with pytest.raises(UnsupportedError, match="runs on 'gpu'"):
        gpu.open(TensorRT(), device=device)


def test_an_exported_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    class Exported(ExportedCheckpoint):
        def __init__(self) -> None:
            self.directory = tmp_path
            self.config = tiny_config(moe=True)

    with pytest.raises(UnsupportedError, match="another form of a mixture of experts"):
        FastDeployOrtBackend()._graph(tmp_path, Exported(), None, LoadOptions())  # type: ignore[arg-type]
