"""What the ranks compute from their directories, added up by hand, is what the whole model computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ernie_accel as ea
from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.split import ExpertSplit
from ernie_accel.arithmetic import attend, rms_norm, rotary_angles, rotate, route, silu, softmax
from ernie_accel.checkpoint.base import Tensor, to_float32
from ernie_accel.checkpoint.headers import read_header
from ernie_accel.checkpoint.save import LayoutName
from ernie_accel.checkpoint.shard import split
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.checkpoint.shard.common import ranks_of

Array = npt.NDArray[np.float32]


def read(directory: Path, layout: LayoutName) -> dict[str, Array]:
    """Tensors of a rank as float32, by bare names and [out, in] in whatever layout they lie."""
    found: dict[str, Array] = {}
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        for name, entry in read_header(path).tensors.items():
            kind = np.dtype("<u2" if entry.dtype == "BF16" else "<f4")
            data = np.frombuffer(content[entry.start : entry.end], kind).reshape(entry.shape)
            values = to_float32(Tensor(data, "bfloat16" if entry.dtype == "BF16" else "float32"))
            turned = layout == "paddle" and values.ndim == 2 and "embed" not in name and "statics" not in name
            found[name.removeprefix("ernie.").removeprefix("model.")] = values.T if turned else values
    return found


@dataclass(frozen=True)
class Rank:
    """Computes the parts that one rank can."""

    index: int
    count: int
    config: ModelConfig
    tensors: dict[str, Array]

    def embed(self, ids: list[int]) -> Array:
        table = self.tensors["embed_tokens.weight"]
        out = np.zeros((len(ids), table.shape[1]), np.float32)
        for row, token in enumerate(ids):
            if self.index * len(table) <= token < (self.index + 1) * len(table):
                out[row] = table[token - self.index * len(table)]
        return out

    def attention(self, layer: int, x: Array) -> Array:
        prefix, dim = f"layers.{layer}.self_attn.", self.config.head_dim
        if f"{prefix}qkv_proj.weight" in self.tensors:
            heads = self.config.num_attention_heads // self.count * dim
            fused = self.tensors[f"{prefix}qkv_proj.weight"]
            q, k, v = np.split(fused, [heads, heads + (len(fused) - heads) // 2])
        else:
            q, k, v = (self.tensors[f"{prefix}{which}_proj.weight"] for which in "qkv")
        angles = rotary_angles(np.arange(len(x)), dim, self.config.rope_theta)
        queries, keys, values = ((x @ matrix.T).reshape(len(x), -1, dim) for matrix in (q, k, v))
        mixed = attend(rotate(queries, angles), rotate(keys, angles), values, 0)
        out: Array = mixed.reshape(len(x), -1) @ self.tensors[f"{prefix}o_proj.weight"].T
        return out

    def ffn(self, prefix: str, x: Array) -> Array:
        if f"{prefix}.up_gate_proj.weight" in self.tensors:
            gate, up = np.split(self.tensors[f"{prefix}.up_gate_proj.weight"], 2)
        else:
            gate, up = (self.tensors[f"{prefix}.{which}_proj.weight"] for which in ("gate", "up"))
        out: Array = (silu(x @ gate.T) * (x @ up.T)) @ self.tensors[f"{prefix}.down_proj.weight"].T
        return out

    def feed_forward(self, layer: int, x: Array) -> Array:
        prefix = f"layers.{layer}.mlp"
        if not self.config.is_moe_layer(layer):
            return self.ffn(prefix, x)
        bias = self.tensors[f"{prefix}.moe_statics.e_score_correction_bias"].reshape(-1)
        scores = softmax(x @ self.tensors[f"{prefix}.gate.weight"].T)
        chosen, weights = route(scores, bias, self.config.moe_k, self.config.moe_norm_min)
        out = (
            self.ffn(f"{prefix}.shared_experts", x)
            if self.config.moe_num_shared_experts
            else np.zeros_like(x)
        )
        for expert in range(self.config.moe_num_experts):
            if not any(name.startswith(f"{prefix}.experts.{expert}.") for name in self.tensors):
                continue  # another rank's
            rows, slots = np.nonzero(chosen == expert)
            out[rows] += weights[rows, slots, None] * self.ffn(f"{prefix}.experts.{expert}", x[rows])
        return out

    def norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.config.rms_norm_eps)

    def logits(self, x: Array) -> Array:
        head = self.tensors["embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"]
        out: Array = self.norm("norm", x) @ head.T
        return out


def together(ranks: list[Rank], ids: list[int]) -> Array:
    """Tensor parallelism: two sums a layer, one for the embedding, and the vocabulary side by side."""
    config = ranks[0].config
    x: Array = sum((rank.embed(ids) for rank in ranks), np.float32(0))
    for layer in range(config.num_hidden_layers):
        name = f"layers.{layer}"
        x = x + sum(rank.attention(layer, rank.norm(f"{name}.input_layernorm", x)) for rank in ranks)
        x = x + sum(
            rank.feed_forward(layer, rank.norm(f"{name}.post_attention_layernorm", x)) for rank in ranks
        )
    return np.concatenate([rank.logits(x) for rank in ranks], axis=1)[:, : config.vocab_size]


@pytest.mark.parametrize("layout", ["pt", "paddle"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("config", "experts"),
    [
        (tiny_config(), "cut"),
        (tiny_config(num_key_value_heads=1, vocab_size=131, tie_word_embeddings=False), "cut"),
        (tiny_config(True, num_key_value_heads=1), "cut"),
        (tiny_config(True, vocab_size=131), "whole"),
        (tiny_config(True, moe_num_shared_experts=0, tie_word_embeddings=True), "whole"),
    ],
    ids=["dense", "dense-one-key-head", "moe-one-key-head", "moe-whole-experts", "moe-tied"],
)
def test_partial_results_add_up(
    config: ModelConfig, experts: ExpertSplit, ranks: int, layout: LayoutName, tmp_path: Path
) -> None:
    source = synthetic(config, seed=3)
    source.write(tmp_path / "m", layout=layout)
    split(tmp_path / "m", tmp_path / "r", ranks=ranks, experts=experts, file_bytes=60_000)
    ids = [5, 1, 127, 64, 3, 3, 90, 126, 2, 0, 33]
    parts = [Rank(n, ranks, config, read(path, layout)) for n, path in enumerate(ranks_of(tmp_path / "r"))]
    with ea.Model.load(source, backend="reference") as model:
        expected = model.logits(ids)
    found = together(parts, ids)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    alone = together(parts[:1], ids)[:, : found.shape[1]]  # and one rank's part is not the whole
    assert np.abs(alone - expected[:, : alone.shape[1]]).max() > 1e-2
