"""What ``Model.load`` asks the planner before it reads a weight."""

from __future__ import annotations

from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel import system
from ernie_accel.backends.base import Footprint, LoadOptions
from ernie_accel.planner.load import plan_load
from ernie_accel.planner.loading import loading_bytes
from ernie_accel.planner.memory import DeviceMemory, device_memory
from ernie_accel.testing import synthetic, tiny_config

CONFIG = tiny_config()


class Untouchable:
    """A checkpoint whose tensors may not be asked for."""

    def __init__(self, config: Any = CONFIG) -> None:
        checkpoint = synthetic(config)
        self.config, self.info = checkpoint.config, checkpoint.info
        self.directory, self.generation_config = None, checkpoint.generation_config

    def tensor(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_cannot_fit_is_refused_before_a_tensor_is_read(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ea.backends()[backend].ok:
        pytest.skip(f"backend {backend} cannot run")
    monkeypatch.setattr(system, "available_memory", lambda root=None: 100_000)
    with pytest.raises(ea.CapacityError, match=r"needs [\d,]+ bytes.*100,000 bytes are available"):
        ea.Model.load(Untouchable(), backend=backend, precision="fp32")


def test_a_context_that_was_asked_for_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ea.plan(CONFIG, devices="cpu", backend="reference", precision="fp32", max_context=128)
    enough = probe.required + 200_000
    monkeypatch.setattr(system, "available_memory", lambda root=None: enough)
    with pytest.raises(ea.CapacityError, match=r"largest context that fits is (\d+) tokens") as caught:
        ea.Model.load(
            Untouchable(), backend="reference", max_context=128, memory_limit=100 * probe.device.kv_per_token
        )
    assert "largest context that fits is 100 tokens" in str(caught.value)
    with ea.Model.load(
        synthetic(CONFIG), backend="reference", memory_limit=100 * probe.device.kv_per_token
    ) as model:
        assert model.max_context == CONFIG.max_position_embeddings  # pages are taken as texts grow


def test_the_number_of_running_requests_follows_from_the_cache() -> None:
    config = tiny_config(max_position_embeddings=4096)
    kv = ea.plan(config, devices="cpu", backend="reference", precision="fp32").device.kv_per_token
    with ea.Model.load(synthetic(config), backend="reference", memory_limit=5 * 512 * kv) as model:
        assert model.plan.sequences == 5
    with ea.Model.load(
        synthetic(config), backend="reference", memory_limit=5 * 512 * kv, max_batch=7
    ) as model:
        assert model.plan.sequences == 7
    with ea.Model.load(synthetic(config), backend="reference") as model:
        assert model.plan.sequences == 32


def test_a_model_knows_its_plan() -> None:
    with ea.Model.load(synthetic(CONFIG), backend="mock") as model:
        found = model.plan
    assert found.backend == "mock"
    assert found.context == CONFIG.max_position_embeddings
    assert found.stages[0].kv_budget > 0
    assert "largest" in repr(found)


class Divided:
    """What ``Model.load`` is told of a backend that divides a model among processes of one machine."""

    name, precisions, splits = "divided", ("fp32",), True

    def estimate(self, config: Any, options: LoadOptions) -> Footprint:
        ranks = options.tensor_parallel
        assert ranks in (1, 2, 4)
        heads = max(1, config.num_key_value_heads // ranks)
        return Footprint(
            kv_per_token=heads * config.num_hidden_layers * config.head_dim * 8,
            scratch=1000,
            runtime=5_000_000,
        )


DIVIDED: Any = Divided()


def test_a_divided_model_is_planned_with_what_every_process_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(num_key_value_heads=1)
    monkeypatch.setattr(system, "available_memory", lambda root=None: 64 << 20)
    planned: dict[int, DeviceMemory] = {}
    for ranks in (1, 4):
        setting, settled = plan_load(synthetic(config), DIVIDED, LoadOptions(tensor_parallel=ranks))
        (planned[ranks],) = device_memory(setting)
        assert settled.memory_limit == ranks * planned[ranks].kv_budget
    assert planned[4].devices * planned[4].runtime == 20_000_000
    assert planned[4].usable == planned[1].usable // 4
    # One key and value head lies in all four, and so do its projections.
    assert planned[4].kv_per_token == planned[1].kv_per_token
    assert planned[4].weights["attention"] > planned[1].weights["attention"] / 4
    assert planned[4].weights["embedding"] == planned[1].weights["embedding"] / 4
    monkeypatch.setattr(system, "available_memory", lambda root=None: 16 << 20)
    plan_load(synthetic(config), DIVIDED, LoadOptions())
    with pytest.raises(ea.CapacityError, match=r"needs [\d,]+ bytes in each of 4 processes"):
        plan_load(synthetic(config), DIVIDED, LoadOptions(tensor_parallel=4))


def test_a_limit_of_the_cache_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "available_memory", lambda root=None: 64 << 20)
    setting, settled = plan_load(
        synthetic(CONFIG), DIVIDED, LoadOptions(tensor_parallel=2, memory_limit=1 << 20)
    )
    assert settled.memory_limit == 1 << 20
    assert device_memory(setting)[0].kv_budget == 1 << 19


def test_a_limit_too_small_for_a_page_is_what_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "available_memory", lambda root=None: 1 << 30)
    with pytest.raises(ea.CapacityError, match="no context fits: raise memory_limit to 2,048 at least"):
        ea.Model.load(synthetic(CONFIG), backend="reference", memory_limit=1)


class Wasteful:
    """A backend whose loading holds the weights several times."""

    name, precisions = "wasteful", ("fp32",)

    def estimate(self, config: Any, options: LoadOptions) -> Footprint:
        return Footprint(kv_per_token=8, scratch=1000, runtime=500, loading=3.0)

    def available(self) -> Any:
        raise AssertionError("nobody asks")

    open = available


def test_what_would_fit_but_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime holds 0.3B twice while it packs its matrices, FastDeploy's four times."""
    backend: Any = Wasteful()
    setting, _ = plan_load(Untouchable(), backend, LoadOptions())
    (memory,) = device_memory(setting)
    needed = loading_bytes(setting, (memory,))
    assert needed is not None
    assert needed >= 4 * memory.weight_bytes + 500
    monkeypatch.setattr(system, "available_memory", lambda root=None: needed - 1)
    with pytest.raises(ea.CapacityError, match=rf"needs {needed:,} bytes while backend 'wasteful' loads it"):
        plan_load(Untouchable(), backend, LoadOptions())
    monkeypatch.setattr(system, "available_memory", lambda root=None: needed)
    plan_load(Untouchable(), backend, LoadOptions())


def test_a_plan_warns_of_a_load_that_takes_more_than_there_is() -> None:
    found = ea.plan("0.3B", devices="cpu-2G", backend="fastdeploy-ort", precision="fp32", max_context=64)
    assert found.loading is not None
    assert found.loading > found.available
    assert any("Loading takes 5." in warning for warning in found.warnings)
