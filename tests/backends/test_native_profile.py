"""Where a step's time went: every part is counted once a layer, with the bytes that it reads."""

from __future__ import annotations

import numpy as np
import pytest

from ernie_accel.backends.registry import available
from ernie_accel.testing import synthetic, tiny_config

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

from ernie_accel import _native
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.native.backend import NativeOptions, _sizes
from ernie_accel.backends.native.loader import load_weights


def loaded(moe: bool) -> _native.Model:
    config = tiny_config(moe=moe)
    sizes = _sizes(config, LoadOptions(precision="int8"), NativeOptions())
    sizes.max_pages = 4
    model = _native.Model(sizes, "portable", 1)
    with synthetic(config) as checkpoint:
        load_weights(model, checkpoint, None)
    return model


def step(model: _native.Model) -> None:
    model.forward([(model.open(), np.arange(5, dtype=np.int32), 1, "logits", None)])


def test_parts_of_a_dense_step() -> None:
    model = loaded(moe=False)
    layers = tiny_config().num_hidden_layers
    model.profile(True)
    step(model)
    step(model)
    steps, parts = model.profile(False)
    calls = {name: count for name, count, _, _ in parts}
    assert steps == 2
    assert calls["qkv"] == calls["attention"] == calls["o"] == calls["gate_up"] == calls["down"] == 2 * layers
    assert calls["head"] == calls["embed"] == 2
    read = {name: size for name, _, _, size in parts}
    matrices = {name: len(model.packed(name)[3]) for name in model.matrix_names()}
    for part in ("qkv", "o", "gate_up", "down"):
        assert read[part] == 2 * sum(size for name, size in matrices.items() if name.endswith(f".{part}"))
    assert read["head"] == 2 * matrices["head"]
    assert all(seconds >= 0 for _, _, seconds, _ in parts)


def test_a_mixture_of_experts_counts_the_chosen_ones_alone() -> None:
    model = loaded(moe=True)
    model.profile(True)
    step(model)
    _, parts = model.profile(False)
    read = {name: size for name, _, _, size in parts}
    experts = sum(
        len(model.packed(n)[3]) for n in model.matrix_names() if ".experts." in n and n.endswith("down")
    )
    assert 0 < read["experts_down"] <= experts
    assert "router" in read


def test_nothing_is_counted_unless_asked() -> None:
    model = loaded(moe=False)
    step(model)
    assert model.profile(True) == (0, [])
    model.profile(False)
    step(model)
    assert model.profile(False) == (0, [])
