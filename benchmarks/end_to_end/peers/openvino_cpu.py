"""OpenVINO's CPU plugin on a stateful model, in the setting that was fastest with groups as small as ours.

Activations are quantised in groups of 64 (``DYNAMIC_QUANTIZATION_GROUP_SIZE``), the KV cache holds uint8, everything
else runs in the precision that the plugin chooses for the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.testing import synthetic

from ..formats.cache import size
from ..formats.openvino_graph import openvino_model
from .base import Ids, Setup

Array = npt.NDArray[Any]


class OpenVino:
    def __init__(self, request: Any, setup: Setup, weight_bytes: int) -> None:
        self._request = request
        with synthetic(setup.shape) as checkpoint:
            self._config = checkpoint.config
        self._weight_bytes = weight_bytes
        self._last = np.zeros((0, 1), np.int64)
        self._length = 0

    def prefill(self, prompt: Ids) -> int:
        self.start([prompt], 1)
        return int(self._last[0, 0])

    def start(self, prompts: Sequence[Ids], steps: int) -> None:
        self._request.reset_state()
        self._length = 0
        self._last = self._infer(np.array(prompts, np.int64))

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._last = self._infer(self._last)

    def step_bytes(self) -> int | None:
        c = self._config
        entries = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        return self._weight_bytes + entries * self._length * len(self._last)

    def _infer(self, ids: Array) -> Array:
        """Append a block of ids, [sequences, tokens]; return the next of each, [sequences, 1]."""
        batch, tokens = ids.shape
        positions = np.arange(self._length, self._length + tokens)
        self._length += tokens
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, self._length), np.int64),
            "position_ids": np.broadcast_to(positions, ids.shape).copy(),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self._request.infer(inputs, share_inputs=True)
        best: Array = self._request.get_output_tensor(0).data[:, -1].argmax(-1)
        return best[:, None]


def load(setup: Setup) -> OpenVino:
    import openvino

    folder = openvino_model(setup.shape, setup.precision)
    options = {
        "INFERENCE_NUM_THREADS": setup.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64",
        "KV_CACHE_PRECISION": "u8",
    }
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
    return OpenVino(compiled.create_infer_request(), setup, size(folder / "model.bin"))
