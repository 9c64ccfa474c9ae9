"""Models whose matrices are rounded as somebody says, in float32: baselines, and what-ifs that no kernel computes.

Weights alone: a virtual checkpoint for any backend. Weights and activations: the NumPy reference, whose matrices round
their input before they multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import RunnerInfo, Step
from ernie_accel.backends.reference import MAX_STEP_TOKENS, ReferenceRunner, WeightReader
from ernie_accel.checkpoint.base import Checkpoint, Tensor, to_float32
from ernie_accel.types import ModelInfo

from .rounding import Float32, Rounding

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Scheme:
    """What is done to one matrix and to the rows that it multiplies; None leaves them as they are."""

    weights: Rounding | None = None
    inputs: Rounding | None = None


Recipe = Callable[[str], Scheme]
"""The scheme of a matrix, by its -PT name; a tied embedding is asked for by its own name."""


def kind_of(name: str) -> str:
    """``"q_proj"`` ... ``"down_proj"``, ``"head"`` (or the table tied to it), ``"norm"``."""
    if name in (EMBEDDING, HEAD):
        return "head"
    part = name.split(".")[-2]
    return part if part.endswith("_proj") else "norm"


def body_and_head(body: Scheme, head: Scheme) -> Recipe:
    """One scheme for all matrices of the layers, one for the head."""

    def scheme(name: str) -> Scheme:
        kind = kind_of(name)
        return Scheme() if kind == "norm" else head if kind == "head" else body

    return scheme


class RoundedCheckpoint:
    """A checkpoint with the weights of a recipe; what is done to inputs is not its business."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self.config: ModelConfig = checkpoint.config
        self.info: ModelInfo = checkpoint.info
        self.directory: Path | None = checkpoint.directory
        self.generation_config: Mapping[str, Any] = checkpoint.generation_config

    def tensor(self, name: str) -> Tensor:
        """Return the tensor after rounding, float32."""
        values = to_float32(self._checkpoint.tensor(name))
        rounding = self._recipe(name).weights
        return Tensor(values if rounding is None else rounding(values), "float32")

    def close(self) -> None:
        """Leave the checkpoint inside open; it is its owner's."""


class RoundedInput:
    """A matrix that rounds what it multiplies: ``x @ matrix.T``."""

    __array_ufunc__ = None  # makes NumPy ask __rmatmul__

    def __init__(self, weights: Float32, inputs: Rounding) -> None:
        self._weights = weights
        self._inputs = inputs

    @property
    def T(self) -> RoundedInput:
        """It is only ever multiplied transposed."""
        return self

    def __rmatmul__(self, x: Float32) -> Float32:
        product: Float32 = self._inputs(x) @ self._weights.T
        return product

    def __getitem__(self, ids: npt.NDArray[np.integer[Any]]) -> Float32:
        """Rows, when it is the embedding too."""
        rows: Float32 = self._weights[ids]
        return rows


class _Reader(WeightReader):
    """Reads matrices as the recipe wants them."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().__init__(RoundedCheckpoint(checkpoint, recipe), None)
        self._recipe = recipe

    def __call__(self, name: str) -> Float32:
        inputs = self._recipe(name).inputs
        weights = super().__call__(name)
        return weights if inputs is None else cast("Float32", RoundedInput(weights, inputs))


class SimulatedModel:
    """The NumPy reference with every matrix as a recipe wants it."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        config = checkpoint.config
        info = RunnerInfo(
            backend="simulated",
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_context=config.max_position_embeddings,
            precision="fp32",
            kv_precision="fp32",
            page_size=1,
            max_step_tokens=MAX_STEP_TOKENS,
            max_sequences=1,
        )
        weights = _Reader(checkpoint, recipe).model(config)
        self._runner = ReferenceRunner(config, weights, info, kv_tokens=config.max_position_embeddings)

    def logits(self, token_ids: Sequence[int]) -> Float32:
        """As ``Model.logits``, for at most 1,024 tokens."""
        sequence = self._runner.open()
        try:
            (result,) = self._runner.forward([Step(sequence, list(token_ids), rows=len(token_ids))])
        finally:
            self._runner.free(sequence)
        assert result.logits is not None
        return result.logits

    def close(self) -> None:
        """Give the weights back."""
        self._runner.close()
