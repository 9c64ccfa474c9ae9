"""The checkpoint's matrices as the graph wants them: joined, reordered and scaled so that a step has less to do.

Everything is exact but the scaling of queries, which rounds once more.

* q, k and v are one matrix, gate and up another: one product instead of three, or two.
* Within every head of q and k the even rows come first and then the odd ones: the rotation of pairs (2i, 2i + 1)
  becomes one of halves (i, i + d/2), which needs no strided access. Scores are sums over the head and do not change.
* q is scaled by d^-0.5, so that scores need not be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig, TensorSpec, tensor_specs
from ernie_accel.architecture.ernie4_5 import EMBEDDING, FINAL_NORM, head_name
from ernie_accel.architecture.ernie4_5_moe import BIAS_SUFFIX, ROUTER_SUFFIX
from ernie_accel.checkpoint.base import Checkpoint, to_float32
from ernie_accel.export.builder import Weight

__all__ = ["StepWeights"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepWeights:
    """Describes every weight of the graph; nothing is read before ``Weight.load`` is called."""

    checkpoint: Checkpoint
    config: ModelConfig

    def embedding(self) -> Weight:
        """The table of ids, [vocab, H]."""
        return self._plain(EMBEDDING)

    def head(self) -> Weight:
        """The matrix of the logits, [vocab, H]: the table itself where the two are tied."""
        return self._plain(head_name(self.config))

    def final_norm(self) -> Weight:
        """[H]."""
        return self._plain(FINAL_NORM, keep=True)

    def input_norm(self, layer: int) -> Weight:
        """[H]."""
        return self._plain(f"model.layers.{layer}.input_layernorm.weight", keep=True)

    def post_norm(self, layer: int) -> Weight:
        """[H]."""
        return self._plain(f"model.layers.{layer}.post_attention_layernorm.weight", keep=True)

    def qkv(self, layer: int) -> Weight:
        """[(heads + 2 * kv_heads) * d, H]: queries, keys, values."""
        return _joined(f"layers.{layer}.qkv", [self.query(layer), self.key(layer), self.value(layer)])

    def query(self, layer: int) -> Weight:
        """[heads * d, H], halves, scaled."""
        scale = np.float32(self.config.head_dim**-0.5)
        source = self._plain(f"model.layers.{layer}.self_attn.q_proj.weight")
        return _changed(f"layers.{layer}.q", source, lambda x: self._halves(x) * scale)

    def key(self, layer: int) -> Weight:
        """[kv_heads * d, H], halves."""
        source = self._plain(f"model.layers.{layer}.self_attn.k_proj.weight")
        return _changed(f"layers.{layer}.k", source, self._halves)

    def value(self, layer: int) -> Weight:
        """[kv_heads * d, H]."""
        return self._plain(f"model.layers.{layer}.self_attn.v_proj.weight")

    def attention_output(self, layer: int) -> Weight:
        """[H, heads * d]."""
        return self._plain(f"model.layers.{layer}.self_attn.o_proj.weight")

    def gate_up(self, prefix: str) -> Weight:
        """[2 * width, H]: gate, then up, of the feed-forward of that name."""
        return _joined(f"{prefix}.gate_up", [self.gate(prefix), self.up(prefix)])

    def gate(self, prefix: str) -> Weight:
        """[width, H]."""
        return self._plain(f"{prefix}.gate_proj.weight")

    def up(self, prefix: str) -> Weight:
        """[width, H]."""
        return self._plain(f"{prefix}.up_proj.weight")

    def down(self, prefix: str) -> Weight:
        """[H, width]."""
        return self._plain(f"{prefix}.down_proj.weight")

    def router(self, layer: int) -> Weight:
        """[experts, H]."""
        return self._plain(f"model.layers.{layer}{ROUTER_SUFFIX}", keep=True)

    def router_bias(self, layer: int) -> Array:
        """[1, experts]."""
        return to_float32(self.checkpoint.tensor(f"model.layers.{layer}{BIAS_SUFFIX}"))

    def _plain(self, name: str, keep: bool = False) -> Weight:
        return Weight(name, self._specs[name].shape, lambda: to_float32(self.checkpoint.tensor(name)), keep)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return tensor_specs(self.config)

    def _halves(self, x: Array) -> Array:
        """Move the even rows of each head before the odd ones."""
        dim = self.config.head_dim
        pairs = x.reshape(-1, dim // 2, 2, x.shape[-1])
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(x.shape)


def _changed(name: str, source: Weight, change: Callable[[Array], Array]) -> Weight:
    return Weight(name, source.shape, lambda: change(source.load()), source.keep)


def _joined(name: str, parts: list[Weight]) -> Weight:
    rows = sum(part.shape[0] for part in parts)
    return Weight(name, (rows, *parts[0].shape[1:]), lambda: np.concatenate([p.load() for p in parts]))
