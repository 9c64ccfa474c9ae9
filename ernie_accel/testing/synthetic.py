"""Checkpoints that lie on no disk: any ERNIE 4.5 shape, its tensors made when they are asked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ernie_accel.architecture import (
    PUBLISHED,
    ROLES,
    ModelConfig,
    TensorSpec,
    multi_token_specs,
    published_config,
    tensor_specs,
)
from ernie_accel.architecture.config import ConfigDialect
from ernie_accel.checkpoint.base import StoredDtype, Tensor
from ernie_accel.checkpoint.save import Bf16Tag, LayoutName, save_checkpoint
from ernie_accel.closing import Closing
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.testing.random_tensors import random_tensor
from ernie_accel.types import ModelInfo

__all__ = ["SyntheticCheckpoint", "synthetic"]

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def synthetic(
    shape: str | ModelConfig | Mapping[str, Any],
    *,
    layers: int | None = None,
    seed: int = 0,
    dtype: StoredDtype = "bfloat16",
) -> SyntheticCheckpoint:
    """Return a checkpoint of random weights that needs neither disk nor memory until a tensor is asked for.

    Shapes that say ``num_nextn_predict_layers`` 1, as 21B-A3B and 300B-A47B do, have multi-token prediction too.

    Args:
        shape: ``"0.3B"``, ``"21B-A3B"``, ``"300B-A47B"``, a configuration, or the keys of a config.json.
        layers: Keep this many layers, from the first on; None keeps all.
        seed: Each tensor depends on this and its name alone, whatever the order and whatever else is asked for.
        dtype: Stored dtype of all tensors but the router's, which are float32.

    Raises:
        ArgumentError: The name, dtype or number of layers is not possible.
        CheckpointError: The keys of config.json are not.
    """
    config, name = _resolve(shape)
    if dtype not in _ITEM_BYTES:
        raise ArgumentError(f"dtype={dtype!r}: must be one of {', '.join(_ITEM_BYTES)}")
    most = config.num_hidden_layers
    if layers is not None and (isinstance(layers, bool) or layers not in range(1, most + 1)):
        raise ArgumentError(f"layers={layers!r}: must be a whole number from 1 to {most}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentError(f"seed={seed!r}: must be a whole number")
    return SyntheticCheckpoint(_cut(config, layers, dtype), name, seed, dtype)


def _resolve(shape: str | ModelConfig | Mapping[str, Any]) -> tuple[ModelConfig, str]:
    if isinstance(shape, str):
        return published_config(shape), shape
    if isinstance(shape, ModelConfig):
        return shape, "synthetic"
    if isinstance(shape, Mapping):
        return ModelConfig.from_dict(shape, source="shape"), "synthetic"
    raise ArgumentError(
        f"shape={shape!r}: must be one of {', '.join(PUBLISHED)}, a ModelConfig, or the keys of a config.json"
    )


def _cut(config: ModelConfig, layers: int | None, dtype: StoredDtype) -> ModelConfig:
    kept = config.num_hidden_layers if layers is None else layers
    end = min(config.moe_layer_end_index, kept - 1)
    return replace(config, num_hidden_layers=kept, moe_layer_end_index=end, torch_dtype=dtype)


class SyntheticCheckpoint(Closing):
    """A virtual checkpoint; implements ``ernie_accel.checkpoint.base.Checkpoint``. Made by ``synthetic``."""

    directory = None
    """There are no files."""

    def __init__(self, config: ModelConfig, name: str, seed: int, dtype: StoredDtype) -> None:
        self.config = config
        self.seed = seed
        self.generation_config: Mapping[str, Any] = {}
        self._dtype: StoredDtype = dtype
        self._specs = tensor_specs(config)
        self.info = self._describe(name)
        if self.multi_token:
            self._specs = {**self._specs, **multi_token_specs(config)}

    @property
    def multi_token(self) -> bool:
        """Whether it has tensors of multi-token prediction; ``info`` does not count them."""
        return self.config.num_nextn_predict_layers == 1

    @property
    def identity(self) -> dict[str, Any]:
        """All that its tensors depend on; equal ones are equal checkpoints."""
        return {"config": self.config.to_dict(), "seed": self.seed, "dtype": self._dtype}

    def _describe(self, name: str) -> ModelInfo:
        parameters: Counter[str] = Counter()
        size: Counter[str] = Counter()
        dtypes: Counter[str] = Counter()
        for key, spec in self._specs.items():
            stored = self.stored_dtype(key)
            parameters[spec.role] += spec.size
            size[spec.role] += spec.size * _ITEM_BYTES[stored]
            dtypes[stored] += 1
        return ModelInfo(
            name=name,
            architecture=self.config.model_type,
            layout="synthetic",
            parameters={role: parameters[role] for role in ROLES if role in parameters},
            bytes={role: size[role] for role in ROLES if role in size},
            dtypes=dict(dtypes),
            derived=self.config.derived,
        )

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise CheckpointError(f"{self.info.name}: there is no tensor {name!r}")
        return self._specs[name]

    def stored_dtype(self, name: str) -> StoredDtype:
        """Return the dtype of a tensor without making it."""
        return "float32" if self._spec(name).dtype_rule == "float32" else self._dtype

    def tensor(self, name: str) -> Tensor:
        """Make the tensor of that ``-PT`` name: read-only, the same bits at each call.

        Raises:
            CheckpointError: The architecture has no such tensor.
        """
        spec = self._spec(name)
        dtype = self.stored_dtype(name)
        data = random_tensor(name, spec, dtype, self.seed)
        data.flags.writeable = False
        return Tensor(data, dtype)

    def write(
        self,
        directory: str | os.PathLike[str],
        *,
        layout: LayoutName = "pt",
        shards: int = 1,
        bf16_tag: Bf16Tag = "BF16",
        config_dialect: ConfigDialect | None = None,
    ) -> None:
        """Write it as a checkpoint directory, tensor by tensor; see ``ernie_accel.checkpoint.save.save_checkpoint``."""
        save_checkpoint(
            self,
            directory,
            layout=layout,
            shards=shards,
            bf16_tag=bf16_tag,
            config_dialect=config_dialect,
            dtype_of=self.stored_dtype,
        )

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""
