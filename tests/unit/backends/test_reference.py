"""The arithmetic of the reference, against the formulas written out for single numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ernie_accel.arithmetic import attend, rms_norm, rotary_angles, rotate, silu, softmax
from ernie_accel.backends.array_cache import KvCache
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.reference import Ffn, Moe, ReferenceBackend
from ernie_accel.errors import ArgumentError, CapacityError, CheckpointError, UnsupportedError
from ernie_accel.testing import synthetic, tiny_config

Array = npt.NDArray[np.float32]


def array(values: Any) -> Array:
    return np.array(values, np.float32)


def random(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_rms_norm() -> None:
    x, w = array([[3, -4]]), array([2, 0.5])
    scale = 1 / math.sqrt((9 + 16) / 2 + 1e-5)
    np.testing.assert_allclose(rms_norm(x, w, 1e-5), array([[3 * scale * 2, -4 * scale * 0.5]]), rtol=1e-6)
    assert np.isfinite(rms_norm(array([[0, 0]]), w, 1e-5)).all()


def test_silu_and_softmax_at_extremes() -> None:
    np.testing.assert_allclose(
        silu(array([-200, -1, 0, 1, 200])), [0, -0.26894142, 0, 0.7310586, 200], rtol=1e-6
    )
    np.testing.assert_allclose(softmax(array([[1000, 1000, -np.inf]])), [[0.5, 0.5, 0]])


def test_rotation_turns_adjacent_pairs() -> None:
    angles = rotary_angles(np.array([0, 3]), 4, 10000.0)
    np.testing.assert_allclose(angles, array([[0, 0], [3, 0.03]]), rtol=1e-6)
    x = array([[[1, 2, 3, 4]], [[1, 2, 3, 4]]])
    c, s, d, t = math.cos(3), math.sin(3), math.cos(0.03), math.sin(0.03)
    turned = [c - 2 * s, 2 * c + s, 3 * d - 4 * t, 4 * d + 3 * t]
    np.testing.assert_allclose(rotate(x, angles), array([[[1, 2, 3, 4]], [turned]]), rtol=1e-5)


def test_attention_is_causal_and_groups_heads() -> None:
    q, k, v = random(2, 4, 8), random(5, 2, 8), random(5, 2, 8)
    out = attend(q, k, v, 3)
    for i in range(2):
        for head in range(4):
            seen = 4 + i
            scores = k[:seen, head // 2] @ q[i, head] / math.sqrt(8)
            expected = softmax(scores) @ v[:seen, head // 2]
            np.testing.assert_allclose(out[i, head], expected, rtol=1e-5, atol=1e-6)


def moe(bias: Array, k: int, norm_min: float = 1e-12, shared: bool = False) -> Moe:
    rng = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> Array:
        return rng.standard_normal((rows, columns)).astype(np.float32)

    experts = tuple(Ffn(matrix(3, 4), matrix(3, 4), matrix(4, 3)) for _ in bias)
    return Moe(matrix(len(bias), 4), bias, experts, experts[0] if shared else None, k, norm_min)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    x = random(1, 4)
    layer = moe(array([0, 0, 50, 40]), k=2)
    chosen, weights = layer.route(x)
    assert chosen.tolist() == [[2, 3]]
    p = softmax(x @ layer.router.T)[0]
    np.testing.assert_allclose(weights, [p[[2, 3]] / (p[2] + p[3])], rtol=1e-6)
    expected = weights[0, 0] * layer.experts[2](x) + weights[0, 1] * layer.experts[3](x)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_equal_scores_take_the_lower_index() -> None:
    layer = moe(array([0, 0, 0, 0, 0]), k=3)
    chosen, weights = layer.route(np.zeros((2, 4), np.float32))
    assert chosen.tolist() == [[0, 1, 2]] * 2
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_weights_are_divided_by_at_least_norm_min() -> None:
    _, weights = moe(array([0, 0, 0, 0]), k=2, norm_min=4.0).route(np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(weights, array([[0.0625, 0.0625]]))


def test_shared_experts_are_added_with_weight_one() -> None:
    x = random(3, 4)
    plain, shared = moe(array([0, 0, 0]), 2), moe(array([0, 0, 0]), 2, shared=True)
    np.testing.assert_allclose(shared(x), plain(x) + plain.experts[0](x), rtol=1e-6)


def test_the_cache_doubles_and_keeps_what_counts() -> None:
    cache = KvCache(2, 1, 4)
    cache.reserve(3)
    cache.keys[:, :3] = 7
    cache.length = 3
    cache.reserve(4)
    assert cache.keys.shape[1] == 6
    assert (cache.keys[:, :3] == 7).all()
    cache.reserve(6)
    assert cache.keys.shape[1] == 6


def test_progress_counts_all_bytes() -> None:
    seen: list[tuple[str, int, int]] = []
    options = LoadOptions(progress=lambda *state: seen.append(state))
    ReferenceBackend().open(synthetic(tiny_config(moe=True)), options)
    done = [state[1] for state in seen]
    assert done == sorted(done)
    assert seen[-1][1] == seen[-1][2]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (LoadOptions(precision="int8"), UnsupportedError, "native"),
        (LoadOptions(kv_precision="bf16"), UnsupportedError, "fp32"),
        (LoadOptions(device="cuda:0"), UnsupportedError, "cpu"),
        (LoadOptions(tensor_parallel=2), UnsupportedError, "tensor_parallel"),
        (LoadOptions(threads=4), UnsupportedError, "native"),
        (LoadOptions(max_context=257), ArgumentError, "256"),
        (LoadOptions(max_context=0), ArgumentError, "256"),
        (LoadOptions(max_batch=0), ArgumentError, "at least 1"),
        (LoadOptions(memory_limit=1000), CapacityError, "memory_limit=1000"),
        (LoadOptions(backend_options=1), ArgumentError, "backend_options"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(
    options: LoadOptions, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        ReferenceBackend().open(synthetic(tiny_config()), options)


def test_a_missing_tensor_is_the_checkpoints_error() -> None:
    source = synthetic(tiny_config())
    del source._specs["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        ReferenceBackend().open(source, LoadOptions())


def test_an_empty_batch_and_weights_after_close() -> None:
    runner = ReferenceBackend().open(synthetic(tiny_config()), LoadOptions())
    assert runner.forward([]) == []
    assert runner.forward([Step(runner.open(), [1], 0)])[0].logits is None
    runner.close()
    assert runner._weights is None
