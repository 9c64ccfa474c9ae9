"""An OpenVINO model built node by node, in the patterns that its CPU plugin fuses.

Stateful like the models that OpenVINO's own exporters write: the KV cache lives in variables, ``beam_idx`` reorders it,
attention is one node, weights are compressed constants, and the head sees the last position only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig
from ernie_accel.testing import SyntheticCheckpoint, synthetic

from .cache import cached
from .llama_weights import llama_config, llama_tensor

Node = Any
INT4_GROUP = 64


def openvino_model(shape: str, precision: str) -> Path:
    """Return the directory with ``model.xml`` and ``model.bin``; ``precision`` is ``int8`` or ``int4``.

    int8: one scale and zero point a row. int4: one for each group of 64 columns, head in int8.
    """

    def make(path: Path) -> None:
        import openvino

        path.mkdir()
        with synthetic(shape) as checkpoint:
            llama_config(checkpoint.config)
            openvino.save_model(
                Graph(checkpoint, precision).model(), path / "model.xml", compress_to_fp16=False
            )

    return cached(f"{shape}-openvino-{precision}", make)


class Graph:
    """Builds the model of one checkpoint."""

    def __init__(self, checkpoint: SyntheticCheckpoint, precision: str) -> None:
        import openvino.opset13 as ops
        from openvino import PartialShape, Type

        self.ops, self.types, self.partial_shape = ops, Type, PartialShape
        self.checkpoint, self.precision = checkpoint, precision
        self.config: ModelConfig = checkpoint.config
        self.sinks: list[Node] = []
        any_shape = [-1, -1]
        self.ids = ops.parameter(any_shape, np.int64, name="input_ids")
        self.mask = ops.parameter(any_shape, np.int64, name="attention_mask")
        self.positions = ops.parameter(any_shape, np.int64, name="position_ids")
        self.beams = ops.parameter([-1], np.int32, name="beam_idx")
        for node in (self.ids, self.mask, self.positions, self.beams):
            node.output(0).get_tensor().set_names({node.get_friendly_name()})

    def model(self) -> Any:
        """The whole."""
        import openvino

        table = self.compressed("model.embed_tokens.weight", 8)
        self.batch = self.dimension(self.ids, 0)
        self.rotation = self.rotations()
        self.visible = self.visibility()
        x = self.ops.gather(table, self.ops.convert(self.ids, "i32"), self.int32(0))
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            x = self.ops.add(x, self.attention(self.norm(x, f"{prefix}.input_layernorm.weight"), layer))
            x = self.ops.add(
                x, self.feed_forward(self.norm(x, f"{prefix}.post_attention_layernorm.weight"), prefix)
            )
        last = self.ops.slice(
            x, self.int32([-1]), self.int32([np.iinfo(np.int32).max]), self.int32([1]), self.int32([1])
        )
        head = table if self.config.tie_word_embeddings else self.compressed("lm_head.weight", 8)
        logits = self.ops.matmul(self.norm(last, "model.norm.weight"), head, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        inputs = [self.ids, self.mask, self.positions, self.beams]
        return openvino.Model([self.ops.result(logits)], self.sinks, inputs, "ernie")

    # Constants.

    def int32(self, value: Any) -> Node:
        return self.ops.constant(np.asarray(value, np.int32))

    def float32(self, value: Any) -> Node:
        return self.ops.constant(np.asarray(value, np.float32))

    def compressed(self, name: str, bits: int) -> Node:
        """A matrix as codes, zero points and scales, in the form that the plugin keeps compressed."""
        values = llama_tensor(self.checkpoint, name)
        rows, columns = values.shape
        group = columns if bits == 8 else INT4_GROUP
        codes, zeros, scales = asymmetric(values.reshape(rows, columns // group, group), 2**bits - 1)
        if bits == 8:
            codes, zeros, scales = codes[:, 0], zeros[:, 0], scales[:, 0]
        kind = self.types.u8 if bits == 8 else self.types.u4
        node = self.ops.subtract(self.half(codes, kind), self.half(zeros, kind))
        node = self.ops.multiply(node, self.ops.constant(scales.astype(np.float16)))
        if bits != 8:
            node = self.ops.reshape(node, self.int32([rows, columns]), False)
        return self.ops.convert(node, "f32")

    def half(self, codes: npt.NDArray[np.uint8], kind: Any) -> Node:
        """Codes that are converted to float16."""
        import openvino

        if kind == self.types.u4:
            pairs = codes.reshape(-1, 2)
            tensor = openvino.Tensor(pairs[:, 0] | pairs[:, 1] << 4, codes.shape, kind)
        else:
            tensor = openvino.Tensor(codes)
        return self.ops.convert(openvino.op.Constant(tensor, shared_memory=False), "f16")

    # Parts of a layer.

    def linear(self, x: Node, name: str) -> Node:
        return self.ops.matmul(x, self.compressed(name, 8 if self.precision == "int8" else 4), False, True)

    def norm(self, x: Node, name: str) -> Node:
        ops = self.ops
        mean = ops.reduce_mean(ops.power(x, self.float32([[[2]]])), self.int32([-1]), True)
        root = ops.sqrt(ops.add(mean, self.float32([[[self.config.rms_norm_eps]]])))
        scaled = ops.multiply(x, ops.divide(self.float32([[[1]]]), root))
        return ops.multiply(self.float32(llama_tensor(self.checkpoint, name)[None, None]), scaled)

    def attention(self, x: Node, layer: int) -> Node:
        c, ops, prefix = self.config, self.ops, f"model.layers.{layer}.self_attn"
        query = self.rotate(self.heads(self.linear(x, f"{prefix}.q_proj.weight"), c.num_attention_heads))
        key = self.rotate(self.heads(self.linear(x, f"{prefix}.k_proj.weight"), c.num_key_value_heads))
        value = self.heads(self.linear(x, f"{prefix}.v_proj.weight"), c.num_key_value_heads)
        keys = self.grouped(self.remembered(key, f"past_key_values.{layer}.keypresent.{layer}.key"))
        values = self.grouped(self.remembered(value, f"past_key_values.{layer}.valuepresent.{layer}.value"))
        out = ops.scaled_dot_product_attention(
            query, keys, values, self.visible, self.float32(c.head_dim**-0.5)
        )
        flat = ops.reshape(ops.transpose(out, self.int32([0, 2, 1, 3])), self.int32([0, 0, -1]), True)
        return self.linear(flat, f"{prefix}.o_proj.weight")

    def feed_forward(self, x: Node, prefix: str) -> Node:
        gate = self.ops.swish(self.linear(x, f"{prefix}.mlp.gate_proj.weight"))
        inner = self.ops.multiply(gate, self.linear(x, f"{prefix}.mlp.up_proj.weight"))
        return self.linear(inner, f"{prefix}.mlp.down_proj.weight")

    def heads(self, x: Node, count: int) -> Node:
        """[batch, tokens, count * d] to [batch, count, tokens, d]."""
        split = self.ops.reshape(x, self.int32([0, 0, count, self.config.head_dim]), True)
        return self.ops.transpose(split, self.int32([0, 2, 1, 3]))

    def rotate(self, x: Node) -> Node:
        ops, (cosine, sine), half = self.ops, self.rotation, self.config.head_dim // 2
        big = self.int32([np.iinfo(np.int32).max])
        first = ops.slice(x, self.int32([0]), self.int32([half]), self.int32([1]), self.int32([3]))
        second = ops.slice(x, self.int32([half]), big, self.int32([1]), self.int32([3]))
        turned = ops.concat([ops.multiply(second, self.float32([[[[-1]]]])), first], -1)
        return ops.add(ops.multiply(x, cosine), ops.multiply(turned, sine))

    def remembered(self, new: Node, name: str) -> Node:
        """The cache of all tokens so far, the new ones appended."""
        c, ops = self.config, self.ops
        shape = [-1, c.num_key_value_heads, -1, c.head_dim]
        empty = ops.concat(
            [self.batch, self.int32([c.num_key_value_heads]), self.int32([0]), self.int32([c.head_dim])], 0
        )
        past = ops.read_value(
            ops.broadcast(self.float32(0), empty), name, self.types.f32, self.partial_shape(shape)
        )
        whole = ops.concat([ops.gather(past, self.beams, self.int32(0)), new], -2)
        self.sinks.append(ops.assign(whole, name))
        return whole

    def grouped(self, x: Node) -> Node:
        """Each key and value head once for every query head that shares it."""
        c, ops = self.config, self.ops
        times = c.num_attention_heads // c.num_key_value_heads
        if times == 1:
            return x
        wide = ops.unsqueeze(x, self.int32(2))
        tokens = self.dimension(x, 2)
        shape = ops.concat(
            [
                self.batch,
                self.int32([c.num_key_value_heads]),
                self.int32([times]),
                tokens,
                self.int32([c.head_dim]),
            ],
            0,
        )
        return ops.reshape(
            ops.broadcast(wide, shape, broadcast_spec="BIDIRECTIONAL"),
            self.int32([0, c.num_attention_heads, -1, c.head_dim]),
            True,
        )

    # What all layers share.

    def rotations(self) -> tuple[Node, Node]:
        """Cosines and sines of the new positions, [batch, 1, tokens, d]."""
        c, ops = self.config, self.ops
        inverse = 1.0 / c.rope_theta ** (np.arange(0, c.head_dim, 2) / c.head_dim)
        positions = ops.convert(ops.unsqueeze(self.positions, self.int32(1)), "f32")
        rows = ops.broadcast(
            self.float32(inverse[None, :, None]),
            ops.concat([self.batch, self.int32([1, 1])], 0),
            broadcast_spec="BIDIRECTIONAL",
        )
        angles = ops.transpose(ops.matmul(rows, positions, False, False), self.int32([0, 2, 1]))
        both = ops.concat([angles, angles], -1)
        return ops.unsqueeze(ops.cos(both), self.int32(1)), ops.unsqueeze(ops.sin(both), self.int32(1))

    def visibility(self) -> Node:
        """0 where a new token sees an old one, else the lowest float32: [batch, 1, new tokens, all tokens]."""
        ops = self.ops
        total = ops.squeeze(self.dimension(self.mask, 1), self.int32(0))
        columns = ops.range(self.int32(0), total, self.int32(1), "i32")
        rows = ops.unsqueeze(ops.convert(self.positions, "i32"), self.int32([1, 3]))
        seen = ops.less_equal(ops.unsqueeze(columns, self.int32([0, 1, 2])), rows)
        return ops.select(seen, self.float32(0), self.float32(np.finfo(np.float32).min))

    def dimension(self, x: Node, axis: int) -> Node:
        """One dimension of a tensor, int32 [1]."""
        return self.ops.gather(self.ops.shape_of(x, "i32"), self.int32([axis]), self.int32(0))


Coded = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float32]]


def asymmetric(values: npt.NDArray[np.float32], top: int) -> Coded:
    """Codes from 0 to ``top`` for the last axis, with zero point and scale: value = (code - zero) * scale."""
    low = np.minimum(values.min(axis=-1, keepdims=True), 0)
    high = np.maximum(values.max(axis=-1, keepdims=True), 0)
    scales = np.maximum((high - low) / top, np.finfo(np.float32).tiny)
    zeros = np.rint(-low / scales)
    codes = np.clip(np.rint(values / scales) + zeros, 0, top)
    return codes.astype(np.uint8), zeros.astype(np.uint8), scales


Builder = Callable[..., Node]
