"""Baselines of the accuracy benchmark, against formulas written out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.accuracy.gguf import dequantise
from benchmarks.accuracy.rounding import integers, q4_0, q8_0
from benchmarks.accuracy.simulate import (
    RoundedCheckpoint,
    Scheme,
    SimulatedModel,
    body_and_head,
    kind_of,
)
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.reference import ReferenceBackend
from ernie_accel.checkpoint.base import Checkpoint, to_float32
from ernie_accel.testing import synthetic, tiny_config

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def row(*values: float) -> npt.NDArray[np.float32]:
    return np.array([values], np.float32)


def test_integers_take_one_scale_a_group() -> None:
    rounded = integers(8, 2)(row(127, 0.6, 1, 0.5, 0, 0))
    np.testing.assert_allclose(rounded, row(127, 1, 1, 64 / 127, 0, 0), rtol=1e-6)


def test_integers_of_a_whole_row() -> None:
    np.testing.assert_allclose(integers(8)(row(127, 0.6, -1.4)), row(127, 1, -1), rtol=1e-6)


def test_q4_0_reaches_its_largest_value_only_on_one_side() -> None:
    w = np.zeros((1, 32), np.float32)
    w[0, :4] = -8, 8, 2.4, 0.4
    np.testing.assert_array_equal(q4_0(w)[0, :4], [-8, 7, 2, 0])
    np.testing.assert_array_equal(q4_0(-w)[0, :4], [8, -7, -2, 0])


def test_q8_0_is_what_gguf_reads() -> None:
    w = np.random.default_rng(0).normal(0, 1, (4, 64)).astype(np.float32)
    blocks = w.reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float32)
    codes = np.rint(blocks / scale).astype(np.int8)
    stored = np.concatenate([scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)], axis=1)
    np.testing.assert_array_equal(q8_0(w), dequantise(stored, "Q8_0").reshape(w.shape))


def test_gguf_4_bit_blocks() -> None:
    quads = np.arange(16, dtype=np.uint8)[None] | (15 - np.arange(16, dtype=np.uint8)[None]) << 4
    halves = np.array([[2.0, -3.0]], np.float16).view(np.uint8)
    nibbles = np.concatenate([np.arange(16), 15 - np.arange(16)])
    np.testing.assert_array_equal(dequantise(np.hstack([halves, quads]), "Q4_1")[0], 2.0 * nibbles - 3.0)
    np.testing.assert_array_equal(
        dequantise(np.hstack([halves[:, :2], quads]), "Q4_0")[0], 2.0 * (nibbles - 8)
    )


def reference_logits(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    runner = ReferenceBackend().open(checkpoint, LoadOptions())
    (result,) = runner.forward([Step(runner.open(), IDS, rows=len(IDS))])
    assert result.logits is not None
    return result.logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_simulation_without_rounding_is_the_reference(tied: bool) -> None:
    checkpoint = synthetic(tiny_config(tie_word_embeddings=tied))
    unchanged = Scheme(inputs=lambda x: x)
    same = SimulatedModel(checkpoint, body_and_head(unchanged, unchanged))
    np.testing.assert_array_equal(same.logits(IDS), reference_logits(checkpoint))


def test_rounded_weights_give_the_same_logits_either_way() -> None:
    checkpoint = synthetic(tiny_config())
    recipe = body_and_head(Scheme(q4_0), Scheme(q8_0))
    rounded = RoundedCheckpoint(checkpoint, recipe)
    np.testing.assert_array_equal(SimulatedModel(checkpoint, recipe).logits(IDS), reference_logits(rounded))
    norm = "model.layers.0.input_layernorm.weight"
    np.testing.assert_array_equal(to_float32(rounded.tensor(norm)), to_float32(checkpoint.tensor(norm)))


def test_rounded_inputs_change_the_logits() -> None:
    checkpoint = synthetic(tiny_config())
    plain = reference_logits(checkpoint)
    rounded = SimulatedModel(checkpoint, body_and_head(Scheme(inputs=integers(8)), Scheme())).logits(IDS)
    assert 0 < np.abs(rounded - plain).max() < 0.2 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "head"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norm"),
        ("model.layers.3.input_layernorm.weight", "norm"),
        ("model.layers.3.self_attn.q_proj.weight", "q_proj"),
        ("model.layers.3.mlp.down_proj.weight", "down_proj"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
