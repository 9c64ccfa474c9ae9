"""What llama.cpp calls the tensors of a Llama, by our ``-PT`` names."""

from __future__ import annotations

__all__ = ["ATTENTION", "FFN", "OUTER", "layer_prefix"]

OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
"""Tensors outside the layers; whole names."""

ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
}
"""Parts of every layer, without "model.layers.N." and ".weight"; norms are among them."""

FFN = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
"""... and of dense ones."""


def layer_prefix(layer: int | str) -> str:
    """What stands before the part of a layer."""
    return f"blk.{layer}"
