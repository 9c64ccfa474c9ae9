"""Tensors of the dense ERNIE 4.5 architecture: names and shapes of the published ``-PT`` layout.

With H = hidden_size, I = intermediate_size, d = head_dim: embedding [V, H]; q [heads * d, H]; k, v [kv_heads * d, H];
o [H, heads * d]; gate, up [I, H]; down [H, I]; norms [H]; head [V, H] unless it is the embedding.
"""

from __future__ import annotations

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.spec import Role, TensorSpec

__all__ = [
    "EMBEDDING",
    "FINAL_NORM",
    "HEAD",
    "attention_specs",
    "ffn_specs",
    "head_name",
    "outer_specs",
    "tensor_specs",
]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

Specs = dict[str, TensorSpec]


def head_name(config: ModelConfig) -> str:
    """Name of the tensor that turns hidden states into logits: the embedding where the two are tied."""
    return EMBEDDING if config.tie_word_embeddings else HEAD


def outer_specs(config: ModelConfig) -> Specs:
    """Tensors outside the layers."""
    table = (config.vocab_size, config.hidden_size)
    specs: Specs = {
        EMBEDDING: TensorSpec(table, "embedding"),
        FINAL_NORM: TensorSpec((config.hidden_size,), "norm"),
    }
    if not config.tie_word_embeddings:
        specs[HEAD] = TensorSpec(table, "head")
    return specs


def attention_specs(config: ModelConfig, layer: str) -> Specs:
    """Attention of the layer whose names begin so, with both norms of the layer."""
    hidden = config.hidden_size
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        f"{layer}.input_layernorm.weight": TensorSpec((hidden,), "norm"),
        f"{layer}.self_attn.q_proj.weight": TensorSpec((query, hidden), "attention"),
        f"{layer}.self_attn.k_proj.weight": TensorSpec((key, hidden), "attention"),
        f"{layer}.self_attn.v_proj.weight": TensorSpec((key, hidden), "attention"),
        f"{layer}.self_attn.o_proj.weight": TensorSpec((hidden, query), "attention"),
        f"{layer}.post_attention_layernorm.weight": TensorSpec((hidden,), "norm"),
    }


def ffn_specs(prefix: str, hidden: int, width: int, role: Role) -> Specs:
    """One SwiGLU feed-forward: down(silu(gate(x)) * up(x))."""
    return {
        f"{prefix}.gate_proj.weight": TensorSpec((width, hidden), role),
        f"{prefix}.up_proj.weight": TensorSpec((width, hidden), role),
        f"{prefix}.down_proj.weight": TensorSpec((hidden, width), role),
    }


def tensor_specs(config: ModelConfig) -> Specs:
    """Every tensor of a dense model."""
    specs = outer_specs(config)
    for index in range(config.num_hidden_layers):
        specs.update(attention_specs(config, f"model.layers.{index}"))
        specs.update(
            ffn_specs(f"model.layers.{index}.mlp", config.hidden_size, config.intermediate_size, "ffn")
        )
    return specs
