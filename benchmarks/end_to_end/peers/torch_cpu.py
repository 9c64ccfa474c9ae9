"""Ernie4_5ForCausalLM of transformers with our weights, driven by a bare greedy loop over its KV cache.

The loop is used in place of its ``generate``, whose bookkeeping would count against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ernie_accel.checkpoint.base import to_float32
from ernie_accel.testing import SyntheticCheckpoint, synthetic

from ..formats.llama_weights import SHARED_KEYS
from .base import Ids, Setup


class Torch:
    def __init__(self, model: Any, config: Any, item_bytes: int) -> None:
        self._model = model
        self._config = config
        self._item_bytes = item_bytes
        self._ids: Any = None
        self._cache: Any = None

    def prefill(self, prompt: Ids) -> int:
        self.start([prompt], 1)
        return int(self._ids[0, 0])

    def start(self, prompts: Sequence[Ids], steps: int) -> None:
        import torch

        self._cache = None
        self._ids = torch.tensor(np.array(prompts))
        self.advance(1)

    def advance(self, steps: int) -> None:
        import torch

        with torch.inference_mode():
            for _ in range(steps):
                out = self._model(
                    input_ids=self._ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
                )
                self._ids, self._cache = out.logits[:, -1:].argmax(-1), out.past_key_values

    def step_bytes(self) -> int | None:
        c = self._config
        entries = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        weights = sum(parameter.numel() for parameter in self._model.parameters())
        return int(self._item_bytes * (weights + entries * self._cache.get_seq_length() * len(self._ids)))


def load(setup: Setup) -> Torch:
    import torch
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setup.precision]
    torch.set_num_threads(setup.threads)
    torch.set_default_dtype(dtype)
    with synthetic(setup.shape) as checkpoint:
        if checkpoint.config.moe_num_experts:
            raise SystemExit(f"error: {setup.shape} in {setup.precision} does not fit the memory")
        config = checkpoint.config
        model = Ernie4_5ForCausalLM(
            Ernie4_5Config(**{key: getattr(config, key) for key in SHARED_KEYS})
        ).eval()
        copy_weights(model, checkpoint)
    return Torch(model, config, dtype.itemsize)


def copy_weights(model: Any, checkpoint: SyntheticCheckpoint) -> None:
    """Names are the same on both sides."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(to_float32(checkpoint.tensor(name))))
