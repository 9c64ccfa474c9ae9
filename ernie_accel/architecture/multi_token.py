"""Tensors of multi-token prediction: one more dense layer that guesses the token after the next.

For position t, with h_t the hidden state after the final norm and x_{t+1} the token that follows:
u_t = linear_proj([emb_norm(embed(x_{t+1})), hidden_norm(h_t)]), then a decoder layer with a KV cache of its own, the
final norm and the head of the model; the most probable token is the guess at x_{t+2}. The published 21B and 300B
checkpoints have one such layer (``num_nextn_predict_layers``), 0.3B has none.

Source: FastDeploy's model of it; where the norms stand is what others measured to fit the published weights best.
"""

from __future__ import annotations

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.ernie4_5 import Specs, attention_specs, ffn_specs
from ernie_accel.architecture.spec import TensorSpec
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError

__all__ = [
    "EMB_NORM",
    "HIDDEN_NORM",
    "MTP_BLOCK",
    "MTP_PREFIX",
    "PROJECTION",
    "check_multi_token",
    "multi_token_specs",
]

MTP_PREFIX = "model.mtp_"
MTP_BLOCK = "model.mtp_block.0"
EMB_NORM = "model.mtp_emb_norm.0.weight"
HIDDEN_NORM = "model.mtp_hidden_norm.0.weight"
PROJECTION = "model.mtp_linear_proj.0.weight"


def check_multi_token(config: ModelConfig, source: str) -> None:
    """Raise unless the configuration says that there is one layer of multi-token prediction."""
    layers = config.num_nextn_predict_layers
    if layers < 1:
        raise CheckpointError(
            f"{source}: has no multi-token prediction (num_nextn_predict_layers is {layers}): use "
            "speculation='lookup' or 'off'; the published 21B and 300B checkpoints have it"
        )
    if layers > 1:
        raise UnsupportedCheckpointError(
            f"{source}: num_nextn_predict_layers={layers}: this version runs one layer of multi-token prediction"
        )


def multi_token_specs(config: ModelConfig) -> Specs:
    """The twelve tensors, by their ``-PT`` names; no part of ``tensor_specs``, since a model runs without them."""
    hidden = config.hidden_size
    return {
        EMB_NORM: TensorSpec((hidden,), "norm"),
        HIDDEN_NORM: TensorSpec((hidden,), "norm"),
        PROJECTION: TensorSpec((hidden, 2 * hidden), "ffn"),
        **attention_specs(config, MTP_BLOCK),
        **ffn_specs(f"{MTP_BLOCK}.mlp", hidden, config.intermediate_size, "ffn"),
    }
