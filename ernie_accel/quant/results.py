"""What quantization gives, part by part, and the checkpoint that is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.checkpoint.base import Checkpoint, Tensor
from ernie_accel.checkpoint.quantised import ActivationGroups, QuantisedMatrix
from ernie_accel.errors import CheckpointError
from ernie_accel.quant.recipe import QuantPrecision, Recipe
from ernie_accel.types import ModelInfo

__all__ = ["LayerResult", "QuantisedResults"]


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """One decoder layer, or, with ``index`` num_hidden_layers, the vocabulary head.

    Attributes:
        index: Layer.
        matrices: Every matrix of it by its ``-PT`` name.
        tensors: Tensors that are no matrix and differ from the checkpoint's, since something was folded into them;
            float32.
        errors: By name of a matrix: root of the mean squared error of its results over the calibration inputs, as a
            share of those results' root mean square; without data the same of its weights.
    """

    index: int
    matrices: Mapping[str, QuantisedMatrix]
    tensors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


class QuantisedResults:
    """A checkpoint and the results for all of its matrices; implements ``QuantisedCheckpoint``.

    It holds the results and reads everything else from ``source``, which must stay open. ``calibrated_on`` is the
    description of the calibration ids, "" without data.
    """

    def __init__(
        self, source: Checkpoint, results: Iterable[LayerResult], recipe: Recipe, calibrated_on: str
    ) -> None:
        self._source = source
        self._matrices: dict[str, QuantisedMatrix] = {}
        self._tensors: dict[str, npt.NDArray[np.float32]] = {}
        self.errors: dict[str, float] = {}
        self._recipe = recipe
        self._calibrated_on = calibrated_on
        for result in results:
            self._matrices.update(result.matrices)
            self._tensors.update(result.tensors)
            self.errors.update(result.errors)

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self._source.config

    @property
    def info(self) -> ModelInfo:
        """What the headers of the unquantised checkpoint say."""
        return self._source.info

    @property
    def directory(self) -> Path | None:
        """Where tokenizer files lie."""
        return self._source.directory

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """generation_config.json, or {} where there is none."""
        return self._source.generation_config

    @property
    def precision(self) -> QuantPrecision:
        """Precision of the body."""
        return self._recipe.precision

    @property
    def activations(self) -> ActivationGroups:
        """How inputs are quantised."""
        return self._recipe.activations

    @property
    def recipe(self) -> str:
        """How the codes were chosen, one sentence."""
        return self._recipe.describe(self._calibrated_on)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all matrices, layer by layer."""
        return tuple(self._matrices)

    def matrix(self, name: str) -> QuantisedMatrix:
        """Return the matrix of that ``-PT`` name. Raises CheckpointError if there is none."""
        if name not in self._matrices:
            raise CheckpointError(f"{self.info.name}: there is no quantised matrix {name!r}")
        return self._matrices[name]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no matrix; an embedding that is not tied is one too."""
        if name in self._tensors:
            return Tensor(self._tensors[name], "float32")
        return self._source.tensor(name)

    def close(self) -> None:
        """Close the unquantised checkpoint."""
        self._source.close()
