"""Predicted beside real: what the process that is measured is told, and what it finds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends import registry
from ernie_accel.errors import BackendError, UnsupportedError
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.verification import measure, verify


def planned(source: Any, **settings: Any) -> ea.MemoryPlan:
    backend = "native" if registry.available()["native"].ok else "reference"
    return ea.plan(
        source, **{"devices": "cpu", "backend": backend, "precision": "fp32", "max_context": 96, **settings}
    )


def test_a_real_load_is_near_its_plan(tmp_path: Path) -> None:
    synthetic(tiny_config()).write(tmp_path)
    plan = planned(tmp_path, max_batch=2)
    found = verify(plan, str(tmp_path))
    assert abs(found.running - plan.peak) < 64 << 20
    assert found.decode > 0
    assert "predicted" in repr(found)


def test_the_process_gets_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []

    def refuse(command: list[str], **_: Any) -> Any:
        jobs.append(json.loads(command[-1]))
        raise BackendError("not here")

    monkeypatch.setattr(subprocess, "run", refuse)
    plan = planned("21B-A3B", backend="native", precision="bf16", max_batch=3, step_tokens=64, mtp=True)
    with pytest.raises(BackendError, match="not here"):
        verify(plan, "21B-A3B")
    (job,) = jobs
    assert (job["step_tokens"], job["mtp"], job["max_batch"], job["max_context"]) == (64, True, 3, 96)

    given: dict[str, Any] = {}

    def load(source: Any, **settings: Any) -> Any:
        given.update(settings)
        raise BackendError("loaded")

    monkeypatch.setattr(ea.Model, "load", load)
    with pytest.raises(BackendError, match="loaded"):
        measure({**job, "source": "/no/such/model"})
    assert given["backend_options"] == ea.NativeOptions(max_step_tokens=64)
    assert given["engine"] == ea.EngineOptions(speculation="mtp")
    assert "step_tokens" not in given


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": "A100", "backend": "auto", "precision": "auto"}, "cannot be verified here"),
        ({"backend": "paddle", "tensor_parallel": 2}, "a model in 2 processes cannot be verified"),
        ({"backend": "paddle", "backend_options": ea.PaddleOptions()}, "cannot be handed to the process"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        verify(planned(tiny_config(), **settings), "m")
