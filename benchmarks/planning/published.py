"""The speed model beside figures that others published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ernie_accel.architecture import ModelConfig, published_config
from ernie_accel.backends.accelerator import accelerator_footprint
from ernie_accel.backends.base import LoadOptions
from ernie_accel.planner.devices import find_devices
from ernie_accel.planner.memory import device_memory
from ernie_accel.planner.setting import Degrees, Setting
from ernie_accel.planner.speed import speed_of
from ernie_accel.planner.subject import Subject

__all__ = ["FITTED", "PUBLISHED", "Figure", "predicted"]

_COMMON: dict[str, Any] = {
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}


def _dense(vocab: int, hidden: int, layers: int, heads: int, kv: int, inner: int) -> ModelConfig:
    """Sizes of a model that has the tensors of a dense ERNIE 4.5: Llama and its kin."""
    return ModelConfig.from_dict(
        {
            **_COMMON,
            "model_type": "ernie4_5",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": inner,
        }
    )


def _moe(config: ModelConfig, experts: int, chosen: int, width: int) -> ModelConfig:
    return replace(
        config,
        model_type="ernie4_5_moe",
        moe_num_experts=experts,
        moe_k=chosen,
        moe_intermediate_size=width,
        moe_layer_end_index=config.num_hidden_layers - 1,
    )


LLAMA_2_7B = _dense(32000, 4096, 32, 32, 32, 11008)
LLAMA_3_8B = _dense(128256, 4096, 32, 32, 8, 14336)
LLAMA_2_70B = _dense(32000, 8192, 80, 64, 8, 28672)
MIXTRAL = _moe(_dense(32000, 4096, 32, 32, 8, 14336), 8, 2, 14336)
QWEN3_30B = _moe(replace(_dense(151936, 2048, 48, 32, 4, 6144), head_dim=128), 128, 8, 768)


@dataclass(frozen=True)
class Figure:
    """Tokens per second of one sequence that somebody measured."""

    model: str
    config: ModelConfig
    devices: str
    tensor: int
    engine: str
    backend: str
    rate: float
    source: str
    precision: str = "bf16"


def _gpt_fast(model: str, config: ModelConfig, rates: dict[int, float]) -> list[Figure]:
    return [
        Figure(model, config, f"{n}xA100-80G", n, "gpt-fast", "", rate, "gpt-fast README")
        for n, rate in rates.items()
    ]


FITTED = [
    *_gpt_fast("Llama-2-7B", LLAMA_2_7B, {1: 105, 2: 169, 4: 254, 8: 328}),
    Figure("0.3B", published_config("0.3B"), "A800-80G", 1, "FastDeploy", "fastdeploy", 291, "a user's post"),
]
"""What constants of the model were fitted to: these show the fit, not a prediction."""

PUBLISHED = [
    *_gpt_fast("Llama-3-8B", LLAMA_3_8B, {1: 94, 2: 149, 4: 217, 8: 276}),
    *_gpt_fast("Llama-2-70B", LLAMA_2_70B, {2: 16, 4: 37, 8: 59}),
    *_gpt_fast("Mixtral-8x7B", MIXTRAL, {2: 97, 4: 155, 8: 228}),
    Figure("Qwen3-30B-A3B", QWEN3_30B, "A100-80G", 1, "vLLM", "fastdeploy", 104, "vLLM, one request"),
]
"""What nothing was fitted to."""


def predicted(figure: Figure) -> tuple[float, float]:
    """Return tokens per second of one sequence at a short context: to expect, and the ceiling."""
    devices = find_devices(figure.devices)
    setting = Setting(
        subject=Subject(name=figure.model, config=figure.config),
        devices=devices,
        backend=figure.backend,
        estimate=accelerator_footprint,
        precision=figure.precision,
        options=LoadOptions(max_context=256, max_batch=1),
        degrees=Degrees(tensor=figure.tensor),
    )
    speed = speed_of(setting, device_memory(setting))
    return speed.decode, speed.decode_ceiling
