"""Plans: what fits, what binds, what would help."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends import registry
from ernie_accel.backends.base import Footprint, LoadOptions
from ernie_accel.errors import ArgumentError, CapacityError, UnsupportedError
from ernie_accel.planner.devices import Device, Devices
from ernie_accel.planner.limits import largest_context
from ernie_accel.planner.setting import Setting
from ernie_accel.planner.subject import find_subject
from ernie_accel.testing import tiny_config

native = pytest.mark.skipif(not registry.available()["native"].ok, reason="the native backend cannot run")

# FastDeploy's table of minimum hardware for text models: model, precision, devices, their number.
TABLE = [
    *(("0.3B", p, d, 1) for p in ("int8", "int4") for d in ("A10", "A30", "L20", "A800", "H800", "H20-96G")),
    *(("0.3B", "fp8", d, 1) for d in ("L20", "H800", "H20-96G")),
    *(("21B-A3B", "int8", d, 1) for d in ("L20", "A800", "H800", "H20-96G")),
    *(("21B-A3B", "int8", d, 2) for d in ("A10", "A30")),
    *(("21B-A3B", "int4", d, 1) for d in ("A10", "A30", "L20", "A800", "H800", "H20-96G")),
    *(("21B-A3B", "fp8", d, 1) for d in ("L20", "H800", "H20-96G")),
    *(("300B-A47B", "int8", d, 8) for d in ("A800", "H800")),
    *(("300B-A47B", "int4", d, 4) for d in ("A800", "H800")),
    ("300B-A47B", "fp8", "H800", 8),
    *(("300B-A47B", "w4a8", d, 4) for d in ("A800", "H800")),
    *(("300B-A47B", "int2", d, 2) for d in ("A800", "H800")),
    ("300B-A47B", "int2", "H20-141G", 1),
    ("300B-A47B", "bf16", "A800", 16),  # "more than one node of eight"
]


@pytest.mark.parametrize(("model", "precision", "device", "least"), TABLE)
def test_the_published_minimum_is_what_fits(model: str, precision: str, device: str, least: int) -> None:
    def fits(count: int) -> bool:
        return ea.plan(
            model,
            devices=f"{count}x{device}",
            precision=precision,
            tensor_parallel=count,
            max_context=32768,
        ).fits

    assert fits(least)
    assert least == 1 or not fits(least // 2)


def test_kv_blocks_are_those_of_the_documentation() -> None:
    found = ea.plan("21B-A3B", devices="A100", max_context=100)
    device = found.device
    assert 64 * device.kv_per_token == 3_670_016  # the worked example: 28 layers, 4 heads, bf16, blocks of 64
    assert device.kv == 100 * device.kv_per_token
    assert device.kv_slack == 28 * device.kv_per_token
    assert found.kv_precision == "bf16"
    assert device.usable == int(0.9 * (81920 << 20))


def test_key_and_value_heads_are_copied_beyond_their_number() -> None:
    one, four, eight = (
        ea.plan("21B-A3B", devices=f"{n}xA100", tensor_parallel=n).device.kv_per_token for n in (1, 4, 4)
    )
    assert one == 4 * four == 4 * eight
    twenty = ea.plan("21B-A3B", devices="20xA100", tensor_parallel=4, data_parallel=5, max_batch=5)
    assert twenty.degrees.devices == 20
    copied = ea.plan("300B-A47B", devices="16xA100", tensor_parallel=16)
    assert any("lies on 2 devices" in warning for warning in copied.warnings)


def test_a_split_that_cannot_be_is_refused_with_those_that_can() -> None:
    with pytest.raises(ArgumentError, match="one of 1, 2, 4"):
        ea.plan("21B-A3B", devices="8xA100", tensor_parallel=3)
    with pytest.raises(ArgumentError, match="number of devices"):
        ea.plan("21B-A3B", devices="2xA100", tensor_parallel=4)
    with pytest.raises(ArgumentError, match="pipeline_parallel"):
        ea.plan("21B-A3B", devices="2xA100", pipeline_parallel=0)


def test_the_plan_divides_as_little_as_is_needed() -> None:
    assert ea.plan("0.3B", devices="8xH100").degrees.devices == 1
    assert ea.plan("300B-A47B", devices="8xH800", precision="int8").degrees.tensor == 8


def test_a_split_that_gains_nothing_is_warned_of() -> None:
    found = ea.plan("0.3B", devices="8xL20", tensor_parallel=8)
    assert any("slower than" in warning for warning in found.warnings)
    alone = ea.plan("0.3B", devices="L20")
    assert found.speed.per_sequence < alone.speed.per_sequence
    assert alone.warnings == ()


def test_pipeline_stages_hold_their_layers_and_the_fullest_counts() -> None:
    found = ea.plan("300B-A47B", devices="16xA100", precision="bf16", tensor_parallel=8, pipeline_parallel=2)
    assert found.fits
    assert len(found.stages) == 2
    assert found.device in found.stages
    assert "embedding" in found.stages[0].weights
    assert "head" in found.stages[1].weights
    assert any("no pipeline" in warning for warning in found.warnings)
    alone = ea.plan("300B-A47B", devices="8xA100", precision="bf16", tensor_parallel=8)
    assert found.required < alone.required


def test_experts_are_divided_among_all_devices() -> None:
    found = ea.plan(
        "300B-A47B",
        devices="8xH800",
        precision="int8",
        expert_parallel=True,
        tensor_parallel=1,
        data_parallel=8,
        max_batch=64,
    )
    assert found.degrees.expert == 8
    whole = ea.plan("300B-A47B", devices="8xH800", precision="int8", tensor_parallel=8)
    assert found.device.weights["experts"] == whole.device.weights["experts"]
    assert found.device.weights["attention"] > whole.device.weights["attention"]


def test_what_is_largest_really_is() -> None:
    found = ea.plan(
        "21B-A3B", devices="2xA30", precision="int8", tensor_parallel=2, max_context=4096, max_batch=4
    )
    assert found.fits

    def fits(**load: Any) -> bool:
        return ea.plan("21B-A3B", devices="2xA30", precision="int8", tensor_parallel=2, **load).fits

    assert fits(max_batch=4, max_context=found.max_context)
    assert not fits(max_batch=4, max_context=found.max_context + 64)
    assert fits(max_batch=found.max_sequences, max_context=4096)
    assert not fits(max_batch=found.max_sequences + 1, max_context=4096)


def test_what_does_not_fit_is_refused_with_numbers_and_remedies() -> None:
    found = ea.plan("300B-A47B", devices="4xA100", precision="bf16")
    assert not found.fits
    assert found.required > found.available
    assert "weights alone" in found.constraint
    with pytest.raises(CapacityError, match=f"{found.required:,} bytes.*{found.available:,} are available"):
        found.check()
    settings = [change.setting for change in found.changes]
    assert "precision='int4'" in settings
    assert "devices='16xA100-80G'" in settings
    assert settings.index("precision='int4'") < settings.index("devices='16xA100-80G'")
    assert ea.plan("300B-A47B", devices="4xA100", precision="int4").fits


def test_a_cache_that_does_not_fit_names_load_that_does() -> None:
    found = ea.plan("21B-A3B", devices="A10", precision="int4", max_context=131072, max_batch=4)
    assert not found.fits
    assert found.constraint.startswith("The KV cache")
    assert 0 < found.max_context < 131072
    assert {change.setting for change in found.changes} >= {f"max_context={found.max_context}"}
    assert f"{found.max_context:,} tokens" in found.refusal()
    assert f"To make it fit: {found.changes[0]}" in found.refusal()


def test_precision_is_the_widest_that_fits_unless_it_is_given() -> None:
    assert ea.plan("21B-A3B", devices="A100").precision == "bf16"
    assert ea.plan("21B-A3B", devices="L20").precision == "fp8"
    assert ea.plan("21B-A3B", devices="2xA30", tensor_parallel=2).precision == "int8"
    assert ea.plan("0.3B", devices="V100").precision == "fp16"
    assert ea.plan("baidu/ERNIE-4.5-300B-A47B-W4A8C8-TP4-Paddle", devices="8xA800").degrees.tensor == 4
    assert ea.plan("300B-A47B", devices="4xH800", precision="w4a8").kv_precision == "int8"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "fp8", "devices": "A100"}, "does not multiply FP8"),
        ({"precision": "bf16", "devices": "T4"}, "lacks bfloat16"),
        ({"backend": "fastdeploy", "devices": "cpu"}, "has no cpu"),
        ({"model": "baidu/ERNIE-4.5-300B-A47B-FP8-Paddle", "precision": "int4", "devices": "8xH800"}, "fp8"),
        (
            {
                "model": "baidu/ERNIE-4.5-300B-A47B-2Bits-TP2-Paddle",
                "devices": "4xH800",
                "tensor_parallel": 4,
            },
            "cut for 2",
        ),
        ({"backend": "reference", "devices": "cpu", "precision": "int8"}, "reference"),
        ({"backend": "reference", "devices": "H100"}, "runs on the cpu"),
    ],
)
def test_what_backend_or_device_lacks_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        ea.plan(settings.pop("model", "0.3B"), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_context": 0},
        {"max_context": 1 << 20},
        {"max_batch": 0},
        {"max_batch": True},
        {"step_tokens": 1.5},
        {"utilization": 1.5},
        {"utilization": "all"},
        {"utilization": True},
        {"precision": "int3"},
        {"kv_precision": "int4"},
        {"memory_limit": 0},
        {"memory_limit": "all"},
        {"threads": 0},
        {"threads": "all"},
        {"expert_parallel": "yes"},
        {"mtp": 1},
        {"probe": "no"},
        {"backend": "nothing"},
    ],
)
def test_values_that_can_never_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        ea.plan("0.3B", **settings)


def test_vision_language_models_carry_their_extra_weights() -> None:
    text, vision = (ea.plan(name, devices="A100", precision="int8") for name in ("21B-A3B", "VL-28B"))
    more = vision.device.weight_bytes - text.device.weight_bytes
    assert more == pytest.approx(6.8e9 + 2 * 0.77e9, rel=0.01)
    assert {"vision", "vision_experts"} <= set(vision.parameters)


def test_prediction_of_further_tokens_is_counted_when_it_is_used() -> None:
    without, beside = (ea.plan("21B-A3B", devices="A100", mtp=mtp) for mtp in (False, True))
    assert beside.device.weights["mtp"] == pytest.approx(2 * 123e6, rel=0.01)
    assert "mtp" not in without.device.weights
    assert any("mtp=True" in note for note in without.assumptions)
    assert beside.device.kv_per_token == without.device.kv_per_token * 29 // 28  # its layer has a cache too
    with pytest.raises(ArgumentError, match="no multi-token prediction"):
        ea.plan("0.3B", devices="A100", mtp=True)


@native
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_the_native_backend_answers_for_itself(precision: str) -> None:
    found = ea.plan("0.3B", devices="cpu", precision=precision, threads=2, max_context=4096, max_batch=4)
    options = LoadOptions(precision=precision, threads=2, max_context=4096, max_batch=4)  # type: ignore[arg-type]
    need = registry.get("native").estimate(found.setting.subject.config, options)
    assert need.weights is not None
    assert found.device.weight_bytes == sum(need.weights.values())
    assert found.device.activations == need.scratch
    assert found.device.kv == 4 * 4096 * need.kv_per_token
    assert found.backend == "native"


@native
def test_a_limit_of_the_cache_is_honoured() -> None:
    free = ea.plan("0.3B", devices="cpu-8G", max_context=4096)
    limited = ea.plan("0.3B", devices="cpu-8G", max_context=4096, memory_limit=16 << 20)
    assert free.fits
    assert not limited.fits
    assert 0 < limited.max_context < 4096
    assert limited.device.kv_budget == 16 << 20


def test_another_package_is_planned_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_accel.backends.base import Footprint
    from ernie_accel.backends.mock import MockBackend

    class Other(MockBackend):
        name = "other"

        def estimate(self, config: Any, options: LoadOptions) -> Footprint:
            return Footprint(kv_per_token=1000, scratch=7, runtime=11, page_tokens=32, weights={"ffn": 5000})

    monkeypatch.setattr(registry, "get", lambda name: Other())
    found = ea.plan(tiny_config(), backend="other", devices="cpu", max_context=33)
    device = found.device
    assert device.weights == {"ffn": 5000}
    assert (device.kv, device.kv_slack, device.activations, device.runtime) == (33000, 31000, 7, 11)
    assert found.required == 5000 + 64000 + 18


def test_a_plan_shows_itself() -> None:
    found = ea.plan("300B-A47B", devices="8xA100", precision="int8", max_batch=2)
    for text in (repr(found), found.table()):
        for word in ("8xA100-80G", "tensor 8", "experts", "kv cache", "required", "constraint", "tokens/s"):
            assert word in text
    assert found._repr_html_().startswith("<strong>MemoryPlan")
    words = found.explain()
    assert f"{found.device.kv_per_token:,} bytes of KV cache" in words
    assert found.constraint in words
    values = json.loads(found.to_json())
    assert values["required"] == found.required
    assert values["degrees"]["tensor"] == 8
    assert values["stages"][0]["weights"] == dict(found.device.weights)
    assert sum(values["total"].values()) == 8 * found.required
    with pytest.raises(FrozenInstanceError):
        found.context = 1  # type: ignore[misc]


def test_a_plan_draws_itself(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    found = ea.plan("300B-A47B", devices="8xA100", precision="int8")
    figure = found.plot(tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").stat().st_size > 1000
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"experts", "kv cache", "runtime"} <= labels
    with pytest.raises(ArgumentError):
        found.plot(tmp_path / "plan.nothing")


def test_a_device_without_a_name_in_the_catalogue() -> None:
    small = Device(name="small", kind="gpu", memory=4 << 30, bandwidth=1e11, tera16=10)
    found = ea.plan("0.3B", devices=small)
    assert found.fits
    assert found.devices == "small"


def test_processes_of_one_machine_share_it() -> None:
    config = tiny_config()
    whole, halves = (
        ea.plan(config, devices="cpu-64G", backend="paddle", precision="fp32", tensor_parallel=n)
        for n in (1, 2)
    )
    assert halves.degrees.devices == 2
    assert halves.available == whole.available // 2
    assert halves.device.kv_per_token == whole.device.kv_per_token // 2
    assert (
        halves.total()["runtime"] > 2 * whole.total()["runtime"]
    )  # Paddle is loaded in both, and where they began
    assert any("Tensor parallel 2 is slower than 1" in warning for warning in halves.warnings)
    with pytest.raises(ArgumentError, match="cannot be divided"):
        ea.plan(config, devices="cpu-64G", backend="reference", tensor_parallel=2)
    with pytest.raises(ArgumentError, match="cannot be divided"):
        ea.plan(config, devices="cpu-64G", backend="paddle", tensor_parallel=3)


def test_auto_takes_the_backend_that_loading_takes() -> None:
    config = tiny_config()
    assert ea.plan(config, devices="cpu-64G").backend == "native"
    assert ea.plan(config, devices="A100").backend == "fastdeploy"
    own = ea.PaddleOptions(onednn=False)
    assert ea.plan(config, devices="cpu-64G", precision="fp32", backend_options=own).backend == "paddle"
    assert registry.foresee(LoadOptions(device="cuda:1")) == "fastdeploy"
    with pytest.raises(UnsupportedError, match="no cpu"):
        ea.plan(config, devices="cpu-64G", backend_options=ea.FastDeployOptions())


def test_the_size_of_steps_is_that_of_the_backend() -> None:
    def planned(backend: str, tokens: int | None) -> ea.MemoryPlan:
        return ea.plan(
            tiny_config(),
            devices="cpu-64G",
            backend=backend,
            precision="fp32",
            step_tokens=tokens,
            max_batch=2,
        )

    assert planned("paddle", None).step_tokens == ea.PaddleOptions().max_step_tokens
    few, many = planned("paddle", 64), planned("paddle", 640)
    assert (few.step_tokens, many.step_tokens) == (64, 640)
    small, twice, large = (planned("onnxruntime", n).device.activations for n in (64, 128, 640))
    assert large - small == 9 * (twice - small) > 0  # beside what does not depend on steps


def test_the_cache_takes_the_bytes_of_its_precision() -> None:
    taken = {
        name: ea.plan("0.3B", devices="H100", kv_precision=name).device.kv_per_token
        for name in ("fp32", "bf16", "fp16", "fp8", "int8")
    }
    bf16 = 2 * 2 * 128 * 18 * 2
    assert taken == {"fp32": 2 * bf16, "bf16": bf16, "fp16": bf16, "fp8": bf16 // 2, "int8": bf16 // 2}


@pytest.mark.parametrize("threshold", [100, 1000, 1001, 5000])
def test_the_largest_context_is_the_largest_even_if_working_memory_jumps(threshold: int) -> None:
    """A backend may need much more above some context, say where it takes another kernel."""

    def footprint(config: Any, options: LoadOptions) -> Footprint:
        return Footprint(
            kv_per_token=1 << 10,
            page_tokens=16,
            runtime=1,
            scratch=(8 << 30) if (options.max_context or 0) > threshold else 1,
        )

    config = replace(tiny_config(), max_position_embeddings=8192)
    machine = Device(name="a machine", kind="cpu", memory=4 << 30, bandwidth=1e9, tera16=1.0, tera8=1.0)
    setting = Setting(
        subject=find_subject(config),
        devices=Devices(machine),
        backend="jumps",
        estimate=footprint,
        precision="fp32",
        options=LoadOptions(max_context=64, max_batch=1),
        offered=("fp32",),
    )
    assert largest_context(setting) == threshold
