"""Greedy text of the trained demo model is the same, character by character, whatever computes it in fp32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import ernie_accel as ea

POET = Path(__file__).parents[2] / "examples/poet/model"
PROMPTS = ["床前明月光，", "春", "大江东去，浪淘尽，"]

pytestmark = pytest.mark.skipif(
    not (POET / "model.safetensors").exists(), reason="examples/poet/model has no weights"
)


@cache
def greedy(backend: str) -> list[str]:
    with ea.Model.load(POET, backend=backend, precision="fp32", threads=2) as model:
        return [completion.text for completion in model.generate(PROMPTS, max_tokens=48, temperature=0)]


@pytest.mark.parametrize("backend", ["fastdeploy-ort", "fastdeploy-openvino", "onnxruntime"])
def test_poems_are_the_same(backend: str) -> None:
    status = ea.backends()[backend]
    if not status.ok:
        pytest.skip(f"{status.reason} {status.next_step}")
    assert greedy(backend) == greedy("native")
