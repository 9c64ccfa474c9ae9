"""What ERNIE 4.5 is: configuration, tensor names and shapes. One file per architecture."""

from __future__ import annotations

from ernie_accel.architecture import ernie4_5, ernie4_5_moe
from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.ernie4_5 import head_name
from ernie_accel.architecture.multi_token import multi_token_specs
from ernie_accel.architecture.published import PUBLISHED, published_config
from ernie_accel.architecture.spec import ROLES, TensorSpec

__all__ = [
    "PUBLISHED",
    "ROLES",
    "ModelConfig",
    "TensorSpec",
    "head_name",
    "multi_token_specs",
    "published_config",
    "tensor_specs",
]


def tensor_specs(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a model, by its ``-PT`` name, in order of use: outer tensors first, then layer by layer."""
    return ernie4_5_moe.tensor_specs(config) if config.is_moe else ernie4_5.tensor_specs(config)
