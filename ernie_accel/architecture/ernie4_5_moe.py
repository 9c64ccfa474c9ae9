"""Tensors of the ERNIE 4.5 mixture-of-experts architecture; dense layers and everything outside are as in ernie4_5.

With E = moe_num_experts, W = moe_intermediate_size: router [E, H] and correction bias [1, E], both float32; each expert
a feed-forward of width W; the shared expert, if any, one feed-forward of width W * moe_num_shared_experts.
"""

from __future__ import annotations

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.ernie4_5 import Specs, attention_specs, ffn_specs, outer_specs
from ernie_accel.architecture.spec import TensorSpec

__all__ = ["BIAS_SUFFIX", "ROUTER_SUFFIX", "moe_specs", "tensor_specs"]

ROUTER_SUFFIX = ".mlp.gate.weight"
BIAS_SUFFIX = ".mlp.moe_statics.e_score_correction_bias"


def moe_specs(config: ModelConfig, index: int) -> Specs:
    """Router, experts and shared expert of one layer."""
    layer, hidden = f"model.layers.{index}", config.hidden_size
    experts, width = config.moe_num_experts, config.moe_intermediate_size
    specs = {
        f"{layer}{ROUTER_SUFFIX}": TensorSpec((experts, hidden), "router", "float32"),
        f"{layer}{BIAS_SUFFIX}": TensorSpec((1, experts), "router", "float32"),
    }
    for expert in range(experts):
        specs.update(ffn_specs(f"{layer}.mlp.experts.{expert}", hidden, width, "experts"))
    if config.moe_num_shared_experts:
        shared = width * config.moe_num_shared_experts
        specs.update(ffn_specs(f"{layer}.mlp.shared_experts", hidden, shared, "shared_experts"))
    return specs


def tensor_specs(config: ModelConfig) -> Specs:
    """Every tensor of a mixture-of-experts model."""
    specs = outer_specs(config)
    for index in range(config.num_hidden_layers):
        specs.update(attention_specs(config, f"model.layers.{index}"))
        if config.is_moe_layer(index):
            specs.update(moe_specs(config, index))
        else:
            specs.update(
                ffn_specs(f"model.layers.{index}.mlp", config.hidden_size, config.intermediate_size, "ffn")
            )
    return specs
