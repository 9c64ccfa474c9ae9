"""The text part of a vision-language ERNIE 4.5, and how many parameters it has besides: for planning, not for running.

The decoder is the text model with a second set of experts in each layer of experts, for image tokens; before it are a
vision transformer and a resampler. Sources: the published configurations and the model code of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.architecture.published import PUBLISHED
from ernie_accel.errors import CheckpointError

__all__ = ["PUBLISHED_VISION", "is_vision_language", "text_part"]

_VIT = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14, "in_channels": 3}
_SPATIAL, _TEMPORAL = 4, 2
"""Patches and frames that the resampler merges into one."""

_COMMON: dict[str, Any] = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_moe_vl",
    "moe_num_experts": [64, 64],
    "num_nextn_predict_layers": 0,
    "vision_config": _VIT,
}

PUBLISHED_VISION: Mapping[str, Mapping[str, Any]] = {
    "VL-28B-A3B": {
        **PUBLISHED["21B-A3B"],
        **_COMMON,
        "moe_intermediate_size": [1536, 512],
        "moe_layer_start_index": [1, 1],
        "moe_layer_end_index": [29, 28],
    },
    "VL-424B-A47B": {**PUBLISHED["300B-A47B"], **_COMMON, "moe_intermediate_size": [3584, 1536]},
}
"""What counts of the config.json of each published vision-language shape, by the name of the shape."""

_TEXT_KEYS = (
    "moe_num_experts",
    "moe_intermediate_size",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "moe_layer_interval",
)
_NOT_TEXT = ("rope_scaling", "rope_3d", "vision_config", "architectures", "moe_num_shared_experts")


def is_vision_language(mapping: Mapping[str, Any]) -> bool:
    """Whether the keys of a config.json are those of a vision-language model."""
    return mapping.get("model_type") in ("ernie4_5_moe_vl", "ernie4_5_vl_moe")


def text_part(mapping: Mapping[str, Any], source: str = "config.json") -> tuple[ModelConfig, dict[str, int]]:
    """Return the text model of a vision-language config.json, and the other parameters by class.

    The classes are ``vision_experts``, which a serving engine quantises like experts, and ``vision``: transformer and
    resampler, which stay in 16 bits.

    Raises:
        CheckpointError: A key is missing or has a value that cannot be.
    """
    keys = {key: value for key, value in mapping.items() if key not in _NOT_TEXT}
    keys.update({key: _first(mapping[key]) for key in _TEXT_KEYS if key in mapping})
    keys["model_type"] = "ernie4_5_moe"
    # The -Paddle twin leaves these out; both have the value of every published model.
    keys.setdefault("max_position_embeddings", 131072)
    keys["moe_num_shared_experts"] = mapping.get("moe_num_shared_experts") or 0
    layers = keys.get("num_hidden_layers")
    if isinstance(layers, int) and isinstance(keys.get("moe_layer_end_index"), int):
        keys["moe_layer_end_index"] = min(keys["moe_layer_end_index"], layers - 1)
    config = ModelConfig.from_dict(keys, source)
    try:
        return config, {
            "vision_experts": _vision_experts(mapping, config),
            "vision": _transformer(mapping["vision_config"]) + _resampler(mapping["vision_config"], config),
        }
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{source}: the keys that describe vision are incomplete or damaged: {error}"
        ) from error


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _vision_experts(mapping: Mapping[str, Any], config: ModelConfig) -> int:
    """Experts and their routers; they lie in the layers that hold text experts."""
    experts, width = mapping["moe_num_experts"][1], mapping["moe_intermediate_size"][1]
    layers = sum(config.is_moe_layer(index) for index in range(config.num_hidden_layers))
    return layers * int(experts) * config.hidden_size * (3 * int(width) + 1)


def _transformer(vision: Mapping[str, Any]) -> int:
    width = int(vision.get("embed_dim") or vision["hidden_size"])
    inner = int(width * vision["mlp_ratio"])
    attention = 4 * width * (width + 1)
    feed_forward = 2 * width * inner + inner + width
    patches = int(vision["in_channels"]) * int(vision["patch_size"]) ** 2 * width
    return int(vision["depth"]) * (attention + feed_forward + 4 * width) + patches + 2 * width


def _resampler(vision: Mapping[str, Any], config: ModelConfig) -> int:
    """Two linears and a norm for places, two and a norm for frames, then one to the text model's width and its norm."""
    width = _SPATIAL * int(vision.get("embed_dim") or vision["hidden_size"])
    spatial = 2 * width * (width + 1) + 2 * width
    temporal = _TEMPORAL * width * width + width + width * (width + 1) + 2 * width
    return spatial + temporal + (width + 1) * config.hidden_size + config.hidden_size
