"""Model files for other engines hold our weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.end_to_end.formats.cache import cached, size
from benchmarks.end_to_end.formats.checkpoint import label, random_checkpoint
from benchmarks.end_to_end.formats.gguf_file import stacked_shape, tensors
from benchmarks.end_to_end.formats.llama_weights import llama_config, llama_tensor
from benchmarks.end_to_end.formats.openvino_graph import asymmetric
from benchmarks.end_to_end.formats.q6_k import quantise_q6_k
from ernie_accel.architecture import tensor_specs
from ernie_accel.checkpoint.base import to_float32
from ernie_accel.testing import synthetic, tiny_config


def test_no_expert_is_favoured_and_all_else_is_the_random_checkpoint() -> None:
    """With biases that differ, sixteen rows would read hardly more experts than one."""
    biases, router = (
        f"model.layers.1.mlp.{name}" for name in ("moe_statics.e_score_correction_bias", "gate.weight")
    )
    with random_checkpoint("21B-A3B", layers=2) as even, synthetic("21B-A3B", layers=2) as plain:
        assert even.config == plain.config
        assert np.ptp(even.tensor(biases).data) == 0 < np.ptp(plain.tensor(biases).data)
        assert np.array_equal(even.tensor(router).data, plain.tensor(router).data)
    assert (label("21B-A3B"), label("0.3B")) == ("21B-A3B-even", "0.3B")


@pytest.mark.parametrize("moe", [False, True])
def test_gguf_files_hold_every_tensor_once(moe: bool) -> None:
    config = tiny_config(moe=moe)
    plan = list(tensors(config))
    assert sorted(source for _, sources in plan for source in sources) == sorted(tensor_specs(config))
    assert len({name for name, _ in plan}) == len(plan)
    with synthetic(config) as checkpoint:
        shapes = {name: stacked_shape(checkpoint, sources) for name, sources in plan}
    assert shapes["blk.1.attn_norm.weight"] == (64,)
    if moe:
        assert shapes["blk.1.ffn_up_exps.weight"] == (8, 32, 64)
        assert shapes["blk.1.exp_probs_b.bias"] == (8,)


def unpacked_q6_k(data: np.ndarray) -> np.ndarray:
    """Values of Q6_K blocks, byte by byte as the format is described."""
    values = []
    for block in data.reshape(-1, 210):
        low, high, factors = block[:128], block[128:192], block[192:208].view(np.int8)
        scale = float(block[208:].view(np.float16)[0])
        for i in range(256):
            half, quarter, at = i // 128, i % 128 // 32, i % 32
            nibble = low[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter // 2)) & 15
            pair = high[32 * half + at] >> (2 * quarter) & 3
            values.append(scale * int(factors[i // 16]) * (int(nibble | pair << 4) - 32))
    return np.array(values)


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_q6_k_rounds_to_the_nearest_of_64_steps(size: float) -> None:
    """Weights of 0.01 have a scale that float16 holds with fewer bits."""
    values = (size * np.random.default_rng(0).normal(size=(3, 512))).astype(np.float32)
    values[1, :256] = 0
    data = quantise_q6_k(values)
    assert data.shape == (3, 420)
    back = unpacked_q6_k(data).reshape(values.shape)
    largest = np.repeat(np.abs(values.reshape(3, -1, 16)).max(axis=2), 16, axis=1)
    assert np.abs(back - values).max() < 0.6 * (largest / 31).max()
    assert not back[1, :256].any()


def test_asymmetric_codes_lie_within_half_a_step() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4, 16)).astype(np.float32) + 1
    for top in (15, 255):
        codes, zeros, scales = asymmetric(values, top)
        assert codes.max() <= top
        error = np.abs((codes.astype(np.float32) - zeros) * scales - values)
        assert (error <= 1.01 * scales).all()


def rotated(x: np.ndarray, position: int, halves: bool) -> np.ndarray:
    """Rotary embedding of one head of width d, on neighbours or on halves."""
    d = len(x)
    angles = position / 500000.0 ** (np.arange(0, d, 2) / d)
    first, second = (x[: d // 2], x[d // 2 :]) if halves else (x[::2], x[1::2])
    turned = (
        first * np.cos(angles) - second * np.sin(angles),
        second * np.cos(angles) + first * np.sin(angles),
    )
    return np.concatenate(turned) if halves else np.stack(turned, axis=1).reshape(-1)


def test_a_llama_scores_queries_and_keys_as_ernie_does() -> None:
    config = tiny_config()
    x = np.random.default_rng(0).normal(size=(2, config.hidden_size))
    scores = []
    with synthetic(config) as checkpoint:
        for halves in (False, True):
            heads = []
            for i, part in enumerate(("q_proj", "k_proj")):
                name = f"model.layers.0.self_attn.{part}.weight"
                weight = llama_tensor(checkpoint, name) if halves else to_float32(checkpoint.tensor(name))
                heads.append(
                    rotated((weight @ x[i])[config.head_dim : 2 * config.head_dim], 3 + 4 * i, halves)
                )
            scores.append(heads[0] @ heads[1])
        norm = "model.norm.weight"
        assert (llama_tensor(checkpoint, norm) == to_float32(checkpoint.tensor(norm))).all()
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_mixture_of_experts_is_no_llama() -> None:
    assert llama_config(tiny_config())["head_dim"] == 32
    with pytest.raises(SystemExit, match="no Llama"):
        llama_config(tiny_config(moe=True))


def test_files_are_made_once_and_whole(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.mkdir()
        (path / "weights").write_bytes(b"1234")
        if len(made) == 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        cached("model", make, tmp_path)
    assert not (tmp_path / "model").exists()
    for _ in range(2):
        assert cached("model", make, tmp_path) == tmp_path / "model"
    assert len(made) == 2
    assert size(tmp_path / "model") == size(tmp_path / "model/weights") == 4
