"""The fused matrices give what the plain ones do."""

from __future__ import annotations

import numpy as np

from ernie_accel.arithmetic import rotary_angles, rotate
from ernie_accel.checkpoint.base import to_float32
from ernie_accel.export.weights import StepWeights
from ernie_accel.testing.synthetic import synthetic
from ernie_accel.testing.tiny import tiny_config


def test_scores_of_halves_are_those_of_pairs() -> None:
    config = tiny_config()
    x = np.random.default_rng(0).standard_normal((5, config.hidden_size)).astype(np.float32)
    angles = rotary_angles(np.arange(5), config.head_dim, config.rope_theta)
    with synthetic(config) as checkpoint:
        weights = StepWeights(checkpoint, config)
        q, k = (to_float32(checkpoint.tensor(f"model.layers.0.self_attn.{n}_proj.weight")) for n in "qk")
        ours = [(x @ w.load().T).reshape(5, -1, config.head_dim) for w in (weights.query(0), weights.key(0))]
    plain = [rotate((x @ w.T).reshape(5, -1, config.head_dim), angles) for w in (q, k)]
    half = config.head_dim // 2
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = [
        np.concatenate(
            [h[..., :half] * cos - h[..., half:] * sin, h[..., half:] * cos + h[..., :half] * sin], axis=-1
        )
        for h in ours
    ]
    wanted = np.einsum("td,sd->ts", plain[0][:, 1], plain[1][:, 0]) * config.head_dim**-0.5
    np.testing.assert_allclose(np.einsum("td,sd->ts", turned[0][:, 1], turned[1][:, 0]), wanted, atol=1e-5)


def test_joined_matrices_hold_their_parts_in_order() -> None:
    config = tiny_config()
    with synthetic(config) as checkpoint:
        weights = StepWeights(checkpoint, config)
        joined = weights.qkv(1)
        parts = np.concatenate([weights.query(1).load(), weights.key(1).load(), weights.value(1).load()])
        assert joined.load().shape == joined.shape
        np.testing.assert_array_equal(joined.load(), parts)
        prefix = "model.layers.1.mlp"
        gate = to_float32(checkpoint.tensor(f"{prefix}.gate_proj.weight"))
        np.testing.assert_array_equal(weights.gate_up(prefix).load()[: len(gate)], gate)


def test_nothing_is_read_before_it_is_wanted() -> None:
    class Unread:
        config = tiny_config(moe=True)

        def tensor(self, name: str) -> None:
            raise AssertionError(f"{name} was read")

    weights = StepWeights(Unread(), Unread.config)  # type: ignore[arg-type]
    for weight in (
        weights.embedding(),
        weights.head(),
        weights.qkv(0),
        weights.gate_up("model.layers.0.mlp"),
    ):
        assert weight.shape[0] > 0
