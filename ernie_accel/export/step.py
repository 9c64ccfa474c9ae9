"""One step of the ERNIE 4.5 decoder, dense and mixture of experts, as a static graph for any ``Builder``.

Read ``signature.py`` first: it says what goes in and comes out. The formulas are those of
``ernie_accel/arithmetic.py``. N = B * T rows go through all products as one matrix; only attention looks at sequences.
The past is read where it lies and never joined with the new keys and values: their scores are joined, for one softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig
from ernie_accel.export.builder import Axis, Builder, Weight
from ernie_accel.export.signature import Signature
from ernie_accel.export.weights import StepWeights

__all__ = ["Fusions", "write_step"]

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Fusions:
    """What is done at once instead of in pieces; switched off only to see what each is worth.

    Attributes:
        qkv: One product for queries, keys and values.
        gate_up: One product for gate and up.
        rotary: Queries and keys are rotated together.
        norm: A norm is one operation where the target has one.
    """

    qkv: bool = True
    gate_up: bool = True
    rotary: bool = True
    norm: bool = True

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All of them."""
        return tuple(field.name for field in fields(cls))

    def without(self, name: str) -> Fusions:
        """All of these but one."""
        return replace(self, **{name: False})

    def counts(self, config: ModelConfig) -> dict[str, int]:
        """How many operations of the graph are fused, by name."""
        layers = config.num_hidden_layers
        moe = sum(config.is_moe_layer(i) for i in range(layers))
        blocks = layers - moe + moe * (config.moe_num_experts + bool(config.moe_num_shared_experts))
        full = {"qkv": layers, "gate_up": blocks, "rotary": layers, "norm": 2 * layers + 2}
        return {name: number if getattr(self, name) else 0 for name, number in full.items()}


def write_step(
    builder: Builder[Any],
    weights: StepWeights,
    signature: Signature,
    *,
    fusions: Fusions | None = None,
) -> None:
    """Write the whole step, inputs and outputs included."""
    _Step(builder, weights, signature, fusions or Fusions()).write()


class _Step(Generic[V]):
    def __init__(
        self, builder: Builder[V], weights: StepWeights, signature: Signature, fusions: Fusions
    ) -> None:
        self.b, self.w, self.s, self.fusions = builder, weights, signature, fusions
        self.c = weights.config

    def write(self) -> None:
        """Inputs, layers, head, outputs."""
        b, s = self.b, self.s
        self.ids = b.input("ids", "int64", ["B", "T"])
        self.positions = b.input("positions", "int64", ["B", "T"])
        self.lengths = b.input("lengths", "int64", ["B"])
        logit_rows = b.input("logit_rows", "int64", ["R"])
        hidden_rows = b.input("hidden_rows", "int64", ["Q"])
        past_shape: list[Axis] = ["B", s.kv_heads, "C", s.head_dim]
        self.past = [b.input(name, s.cache_dtype, past_shape) for name in s.past_names]
        self._prepare()
        x = b.reduce(b.embed(b.reshape(self.ids, [-1]), self.w.embedding()))
        new: list[V] = []
        for layer in range(s.layers):
            x = b.add(x, self._attention(layer, self._norm(x, self.w.input_norm(layer)), new))
            x = b.add(x, b.reduce(self._feed_forward(layer, self._norm(x, self.w.post_norm(layer)))))
        hidden = self._norm(b.gather_rows(x, hidden_rows), self.w.final_norm())
        last = self._norm(b.gather_rows(x, logit_rows), self.w.final_norm())
        b.output("logits", b.linear(last, self.w.head()), "float32", ["R", s.vocab_size])
        b.output("hidden", hidden, "float32", ["Q", s.hidden_size])
        new_shape: list[Axis] = [2 * s.layers, "B", s.kv_heads, "T", s.head_dim]
        b.output("new", b.stack(new), s.cache_dtype, new_shape)

    def _prepare(self) -> None:
        """What all layers share: angles [N, 1, d/2], and what a query may see of past and new."""
        b, c = self.b, self.c
        exponent = np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim)
        frequency = (1 / np.float32(c.rope_theta) ** exponent).astype(np.float32)
        flat = b.cast(b.reshape(self.positions, [-1, 1, 1]), "float32")
        angles = b.multiply(flat, b.constant(frequency.reshape(1, 1, -1)))
        self.cos, self.sin = b.cos(angles), b.sin(angles)
        self.past_length = b.length(self.past[0], 2)
        places = b.reshape(b.count(self.past_length), [1, 1, 1, -1])
        lengths = b.reshape(self.lengths, [-1, 1, 1, 1])
        self.past_bias = b.bias_where(places, lengths, strict=True)  # [B, 1, 1, C]
        # Queries of the heads that share a key head are rows of one matrix: [T, group] flattened.
        group = c.num_attention_heads // c.num_key_value_heads
        ones = b.constant(np.ones((1, 1, group), np.int64))
        queries = b.multiply(b.unflatten(self.positions, self.positions, [1]), ones)  # [B, T, group]
        queries = b.reshape(b.reshape(queries, [0, -1]), [0, 1, -1, 1])
        keys = b.reshape(self.positions, [0, 1, 1, -1])
        self.new_bias = b.bias_where(keys, queries, strict=False)  # [B, 1, T * group, T]

    def _norm(self, x: V, weight: Weight) -> V:
        if self.fusions.norm:
            return self.b.rms_norm(x, weight, self.c.rms_norm_eps)
        b, width = self.b, weight.shape[0]
        mean = b.multiply(b.sum(b.multiply(x, x), 1, keep=True), b.constant(_number(1 / width)))
        scaled = b.divide(x, b.sqrt(b.add(mean, b.constant(_number(self.c.rms_norm_eps)))))
        return b.multiply(scaled, b.parameter(weight))

    # Attention.

    def _attention(self, layer: int, x: V, new: list[V]) -> V:
        """Append the layer's keys and values to ``new``, [B, kv_heads, T, d] each; return [N, H]."""
        b, c = self.b, self.c
        group = c.num_attention_heads // c.num_key_value_heads
        q, k, v = self._rotated(layer, x)
        q = self._by_heads(q, group * c.head_dim)  # [B, kv_heads, T, group * d]
        q = b.reshape(q, [0, 0, -1, c.head_dim])  # [B, kv_heads, T * group, d]
        k, v = self._by_heads(k, c.head_dim), self._by_heads(v, c.head_dim)
        if self.s.cache_dtype != "float32":
            q, k, v = (b.cast(part, self.s.cache_dtype) for part in (q, k, v))
        new += [k, v]
        mixed = self._mix(q, k, v, self.past[2 * layer], self.past[2 * layer + 1])
        mixed = b.reshape(mixed, [0, 0, -1, group * c.head_dim])
        mixed = b.reshape(b.transpose(mixed, [0, 2, 1, 3]), [-1, c.num_attention_heads * c.head_dim])
        return b.reduce(b.linear(mixed, self.w.attention_output(layer)))

    def _rotated(self, layer: int, x: V) -> tuple[V, V, V]:
        """Queries and keys, rotated, and values: [N, heads, d] each."""
        b, c = self.b, self.c
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        if self.fusions.qkv:
            joined = b.reshape(b.linear(x, self.w.qkv(layer)), [0, heads + 2 * kv_heads, c.head_dim])
            qk, v = b.split(joined, [heads + kv_heads, kv_heads], 1)
        else:
            parts = [b.linear(x, matrix(layer)) for matrix in (self.w.query, self.w.key, self.w.value)]
            q, k, v = (b.reshape(part, [0, -1, c.head_dim]) for part in parts)
            qk = b.concat([q, k], 1)
        if self.fusions.rotary:
            q, k = b.split(self._rotate(qk), [heads, kv_heads], 1)
        else:
            q, k = (self._rotate(part) for part in b.split(qk, [heads, kv_heads], 1))
        return q, k, v

    def _rotate(self, x: V) -> V:
        """Turn the pairs (i, i + d/2) of every head of x, [N, heads, d]."""
        b, half = self.b, self.c.head_dim // 2
        low, high = b.split(x, [half, half], 2)
        turned = [
            b.subtract(b.multiply(low, self.cos), b.multiply(high, self.sin)),
            b.add(b.multiply(high, self.cos), b.multiply(low, self.sin)),
        ]
        return b.concat(turned, 2)

    def _by_heads(self, x: V, width: int) -> V:
        """[N, heads, d] as [B, kv_heads, T, width]."""
        parts = self.b.unflatten(x, self.ids, [self.c.num_key_value_heads, width])
        return self.b.transpose(parts, [0, 2, 1, 3])

    def _mix(self, q: V, k: V, v: V, past_k: V, past_v: V) -> V:
        """Attention with one softmax over past and new: [B, kv_heads, T * group, d]; queries are scaled already."""
        b = self.b
        old = b.add(b.matmul(q, past_k, transpose_b=True), self.past_bias)
        own = b.add(b.matmul(q, k, transpose_b=True), self.new_bias)
        shares = b.softmax(b.concat([old, own], 3))
        if self.s.cache_dtype != "float32":
            shares = b.cast(shares, self.s.cache_dtype)
        old, own = b.split_at(shares, self.past_length, 3)
        return b.add(b.matmul(old, past_v), b.matmul(own, v))

    # Feed-forward.

    def _feed_forward(self, layer: int, x: V) -> V:
        prefix = f"model.layers.{layer}.mlp"
        if not self.c.is_moe_layer(layer):
            return self._swiglu(x, prefix, self.c.intermediate_size)
        mixed = self._experts(layer, x)
        if self.c.moe_num_shared_experts:
            width = self.c.moe_intermediate_size * self.c.moe_num_shared_experts
            mixed = self.b.add(mixed, self._swiglu(x, f"{prefix}.shared_experts", width))
        return mixed

    def _swiglu(self, x: V, prefix: str, width: int) -> V:
        b = self.b
        if self.fusions.gate_up:
            gate, up = b.split(b.linear(x, self.w.gate_up(prefix)), [width, width], 1)
        else:
            gate, up = b.linear(x, self.w.gate(prefix)), b.linear(x, self.w.up(prefix))
        return b.linear(b.multiply(b.silu(gate), up), self.w.down(prefix))

    def _experts(self, layer: int, x: V) -> V:
        """Weighted sum of the chosen experts, [N, H]."""
        b, c = self.b, self.c
        shares = b.softmax(b.linear(x, self.w.router(layer)))  # [N, experts]
        chosen = b.top_k(b.add(shares, b.constant(self.w.router_bias(layer))), c.moe_k)
        weights = b.take(shares, chosen)
        total = b.maximum(b.sum(weights, 1, keep=True), b.constant(_number(c.moe_norm_min)))
        weights = b.divide(weights, total)
        if b.groups_rows:
            return self._grouped_experts(layer, x, chosen, weights)
        return self._masked_experts(layer, x, b.scatter(shares, chosen, weights))

    def _grouped_experts(self, layer: int, x: V, chosen: V, weights: V) -> V:
        """Sort the N * k pairs of row and expert by expert; each expert computes its own, if it has any."""
        b, c = self.b, self.c
        flat = b.reshape(chosen, [-1])
        order = b.order(flat)
        ones = b.constant(np.ones((1, c.moe_k), np.int64))
        rows = b.reshape(b.multiply(b.reshape(b.count(b.length(x, 0)), [-1, 1]), ones), [-1])
        sorted_x = b.gather_rows(x, b.gather_rows(rows, order))  # [N * k, H]
        experts = [partial(self._expert, layer, index) for index in range(c.moe_num_experts)]
        mixed = b.by_group(sorted_x, flat, order, experts)
        mixed = b.multiply(
            b.reshape(mixed, [-1, c.moe_k, c.hidden_size]), b.reshape(weights, [0, c.moe_k, 1])
        )
        return b.sum(mixed, 1, keep=False)

    def _masked_experts(self, layer: int, x: V, weights: V) -> V:
        """Every expert computes every row; ``weights`` [N, experts] are 0 where a row did not choose it."""
        b, experts = self.b, self.c.moe_num_experts
        total: V | None = None
        for index, weight in enumerate(b.split(weights, [1] * experts, 1)):
            part = b.multiply(self._expert(layer, index, x), weight)
            total = part if total is None else b.add(total, part)
        assert total is not None
        return total

    def _expert(self, layer: int, index: int, x: V) -> V:
        return self._swiglu(x, f"model.layers.{layer}.mlp.experts.{index}", self.c.moe_intermediate_size)


def _number(value: float) -> npt.NDArray[np.float32]:
    return np.array([[value]], np.float32)
