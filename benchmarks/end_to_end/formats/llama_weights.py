"""Our checkpoint as a Llama: the same function, in the order of weights that Llama implementations expect.

ERNIE rotates neighbouring values of a head (2i and 2i + 1), Llama the halves (i and i + d/2). Putting the even rows of
each query and key head before the odd ones turns one into the other, and changes no product of a query and a key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig
from ernie_accel.checkpoint.base import to_float32
from ernie_accel.testing import SyntheticCheckpoint

SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)
"""What ERNIE, Llama and their libraries call by the same name in config.json."""


def llama_tensor(checkpoint: SyntheticCheckpoint, name: str) -> npt.NDArray[np.float32]:
    """Return a tensor by its ``-PT`` name, which is Llama's too, float32."""
    values = to_float32(checkpoint.tensor(name))
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        rows, columns = values.shape
        pairs = values.reshape(-1, checkpoint.config.head_dim // 2, 2, columns)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
    return values


def llama_config(c: ModelConfig) -> dict[str, Any]:
    """Return the keys of a Llama's config.json."""
    if c.moe_num_experts:
        raise SystemExit("error: a mixture of experts is no Llama; only llama.cpp has one here")
    return {
        **{key: getattr(c, key) for key in SHARED_KEYS},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
