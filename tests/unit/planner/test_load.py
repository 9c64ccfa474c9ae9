"""What ``Model.load`` asks the planner before it reads a weight."""

from __future__ import annotations

from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel import system
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
