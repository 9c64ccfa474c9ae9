"""Quantised matrices as codes; packed matrices taken out of one native model and put into another."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.backends.registry import available
from ernie_accel.testing.tiny import tiny_config

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

from ernie_accel import _native
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.native.backend import NativeOptions, _sizes
from ernie_accel.backends.native.loader import load_weights
from ernie_accel.testing.synthetic import synthetic

IDS = np.arange(3, 40, dtype=np.int32)


def sizes(config: ModelConfig, precision: Any) -> _native.Config:
    made = _sizes(config, LoadOptions(precision=precision), NativeOptions())
    made.max_pages = 20
    return made


def loaded(config: ModelConfig, precision: Any) -> _native.Model:
    model = _native.Model(sizes(config, precision), _native.supported_isas()[-1], 2)
    load_weights(model, synthetic(config), None)
    return model


def logits(model: _native.Model) -> npt.NDArray[np.float32]:
    sequence = model.open()
    (rows,) = model.forward([(sequence, IDS, len(IDS), "logits", None)])
    assert isinstance(rows, np.ndarray)
    return rows


def copy_of(model: _native.Model, config: ModelConfig, precision: Any) -> _native.Model:
    """A model that reads the same panels."""
    made = _native.Model(sizes(config, precision), _native.supported_isas()[-1], 2)
    with synthetic(config) as checkpoint:
        for layer in range(config.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            made.set_norms(
                layer,
                *(tensor(checkpoint, f"{prefix}.{n}_layernorm.weight") for n in ("input", "post_attention")),
            )
            if config.is_moe_layer(layer):
                gate = tensor(checkpoint, f"{prefix}.mlp.gate.weight")
                bias = tensor(checkpoint, f"{prefix}.mlp.moe_statics.e_score_correction_bias")
                made.set_router(layer, gate, bias)
        made.set_final_norm(tensor(checkpoint, "model.norm.weight"))
    for name in model.matrix_names():
        made.set_packed(name, *model.packed(name))
    made.finish()
    return made


def tensor(checkpoint: Any, name: str) -> _native.Tensor:
    found = checkpoint.tensor(name)
    return _native.Tensor(found.data, found.dtype)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("moe", [False, True])
def test_panels_of_one_model_serve_another(precision: str, moe: bool) -> None:
    config = tiny_config(moe=moe)
    first = loaded(config, precision)
    expected = logits(first)
    second = copy_of(first, config, precision)
    del first  # the panels stay alive
    np.testing.assert_array_equal(logits(second), expected)


def quantised(rows: int, cols: int, *, bits: int, exact: list[int], group: int = 64) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    most = (1 << (bits - 1)) - 1
    codes = rng.integers(-most, most + 1, (rows, cols)).astype(np.int8)
    codes[:, exact] = 0
    return {
        "bits": bits,
        "group": group,
        "codes": codes,
        "scales": np.full((rows, -(-cols // group)), 0x3C00, np.uint16),
        "subs": rng.integers(0, 16, (rows, -(-cols // 16))).astype(np.uint8) if bits == 4 else None,
        "exact": np.array(exact, np.int32),
        "exact_weights": np.full((rows, len(exact)), 0x3F80, np.uint16),
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"group": 24}, "multiple of 16"),
        ({"scales": np.zeros((4, 1), np.uint16)}, "scales"),
        ({"exact": np.array([3, 1], np.int32)}, "ascend"),
        ({"exact": np.array([1, 200], np.int32)}, "ascend"),
        ({"exact": np.array([1, 2, 3], np.int32)}, "even"),
        ({"exact_weights": np.zeros((4, 4), np.uint16)}, "exact weights"),
        ({"subs": np.zeros((4, 3), np.uint8)}, "factors"),
        ({"subs": np.full((4, 8), 16, np.uint8)}, "from 0 to 15"),
        ({"codes": np.full((4, 128), 8, np.int8)}, "-8 to 7"),
        ({"bits": 5}, "8, 6 or 4"),
        ({"bits": 6}, "factors"),
        ({"subs": None}, "factors"),
    ],
)
def test_codes_that_do_not_fit_are_refused(change: dict[str, Any], what: str) -> None:
    arguments = quantised(4, 128, bits=4, exact=[1, 2])
    _native.Tensor.quantised(**arguments)
    with pytest.raises(ValueError, match=what):
        _native.Tensor.quantised(**{**arguments, **change})


def test_codes_need_a_quantised_model_of_their_group() -> None:
    config = tiny_config()
    shape = (config.intermediate_size, config.hidden_size)
    made = {g: _native.Tensor.quantised(**quantised(*shape, bits=8, exact=[], group=g)) for g in (32, 64)}
    down = _native.Tensor(np.zeros(shape[::-1], np.float32), "float32")
    with pytest.raises(ValueError, match="groups of 32, no multiple"):
        _native.Model(sizes(config, "int8"), "portable", 1).set_ffn(0, made[32], made[32], down)
    with pytest.raises(ValueError, match="not made for quantised"):
        _native.Model(sizes(config, "fp32"), "portable", 1).set_ffn(0, made[64], made[64], down)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "layers.9.qkv"}, "no packed matrix"),
        ({"precision": "bf16"}, "model's precision"),
        ({"group": 32}, "groups that"),
        ({"exact": [5, 5]}, "ascend"),
        ({"exact": [1 << 20, 1 << 21]}, "ascend"),
        ({"panels": np.zeros(64, np.uint8)}, "number of bytes"),
    ],
)
def test_panels_that_do_not_fit_are_refused(change: dict[str, Any], what: str) -> None:
    config = tiny_config()
    model = loaded(config, "int8")
    precision, group, exact, panels = model.packed("layers.0.qkv")
    arguments = {
        "name": "layers.0.qkv",
        "precision": precision,
        "group": group,
        "exact": exact,
        "panels": panels,
    }
    with pytest.raises(ValueError, match=what):
        _native.Model(sizes(config, "int8"), "portable", 1).set_packed(**{**arguments, **change})
