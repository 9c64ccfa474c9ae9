"""onnxruntime-genai: its generator, one batch of token rows, greedy search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..formats.onnx_directory import onnx_directory
from .base import Ids, Setup


class OnnxGenAi:
    def __init__(self, model: Any, context: int) -> None:
        self._model = model
        self._context = context
        self._generator: Any = None

    def prefill(self, prompt: Ids) -> int:
        self.start([prompt], 1)
        return int(self._generator.get_next_tokens()[0])

    def start(self, prompts: Sequence[Ids], steps: int) -> None:
        import onnxruntime_genai

        self._generator = None
        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=self._context, min_length=self._context
        )
        self._generator = onnxruntime_genai.Generator(self._model, params)
        self._generator.append_tokens(np.array(prompts, np.int32))
        self._generator.generate_next_token()

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self._generator.generate_next_token()

    def step_bytes(self) -> int | None:
        return None


def load(setup: Setup) -> OnnxGenAi:
    import onnxruntime_genai

    folder = onnx_directory(setup.shape, setup.precision)
    config = onnxruntime_genai.Config(str(folder))
    options = {"intra_op_num_threads": setup.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return OnnxGenAi(onnxruntime_genai.Model(config), setup.context)
