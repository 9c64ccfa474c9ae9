"""Calibration: a walk through the model, layer by layer, that quantises what it has passed.

Two streams of hidden states go along: one through the float32 layers, one through the layers as they were quantised, so
that every matrix is fitted to the inputs that it will really have, and can make up for what earlier ones did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture.ernie4_5 import EMBEDDING, FINAL_NORM, head_name
from ernie_accel.arithmetic import rms_norm
from ernie_accel.checkpoint.base import Checkpoint, to_float32
from ernie_accel.errors import ArgumentError
from ernie_accel.quant.calculator import Calculator
from ernie_accel.quant.feedforward import experts_through, ffn_through, read_matrices
from ernie_accel.quant.fit import Fitter
from ernie_accel.quant.forward import Attention
from ernie_accel.quant.recipe import Recipe
from ernie_accel.quant.results import LayerResult
from ernie_accel.quant.streams import Streams
from ernie_accel.quant.text import whole_numbers
from ernie_accel.types import Progress

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["Calibration"]

Ids = npt.NDArray[np.int64]


class Calibration:
    """Quantises a checkpoint with calibration; iterate over it once.

    Every layer gives one ``LayerResult``, the head another one at the end. What is in ``finished`` is not computed
    again, and what comes after it has the same bits as in one go.

    Args:
        checkpoint: An unquantised checkpoint; it must stay open.
        recipe: How.
        sequences: Calibration ids, one or more sequences. ``ernie_accel.quant.text`` makes them.
        finished: Results of an interrupted run with the same arguments.
        threads: None takes what the machine allows; results do not depend on it.
        progress: Called as ``progress("quantise", layers done, layers)``.

    Raises:
        ArgumentError: A sequence is empty or longer than the context, or an id is outside the vocabulary.
        CheckpointError: A tensor is missing or holds values that are no numbers.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        sequences: Sequence[Sequence[int]],
        *,
        finished: Sequence[LayerResult] = (),
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._sequences = _checked(sequences, checkpoint.config)
        self._finished = {result.index: result for result in finished}
        self._progress = progress
        self._calculator = Calculator(threads)

    def __iter__(self) -> Iterator[LayerResult]:
        """Yield the results of layer after layer, and then that of the head."""
        config = self._checkpoint.config
        walk = _Walk(self._checkpoint, self._recipe, self._sequences, self._calculator)
        layers = config.num_hidden_layers
        for index in range(layers + 1):
            step = walk.head if index == layers else walk.layer
            yield step(index, self._finished.get(index))
            if self._progress is not None:
                self._progress("quantise", index + 1, layers + 1)


def _checked(sequences: Sequence[Sequence[int]], config: ModelConfig) -> list[Ids]:
    if not sequences:
        raise ArgumentError("calibration needs at least one sequence of ids; there is none")
    plain = [whole_numbers(sequence) for sequence in sequences]
    for number, ids in enumerate(plain):
        if not 1 <= len(ids) <= config.max_position_embeddings:
            raise ArgumentError(
                f"calibration sequence {number} has {len(ids)} ids: must have from 1 to "
                f"{config.max_position_embeddings}"
            )
        outside = next((token for token in ids if not 0 <= token < config.vocab_size), None)
        if outside is not None:
            raise ArgumentError(
                f"calibration sequence {number} holds the id {outside}: must be from 0 to {config.vocab_size - 1}"
            )
    return [np.array(ids, np.int64) for ids in plain]


class _Walk:
    """Where calibration is: hidden states [T, H] of both streams."""

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, sequences: list[Ids], calculator: Calculator
    ) -> None:
        self._checkpoint, self._recipe, self._calculator = checkpoint, recipe, calculator
        self._config = checkpoint.config
        self._attention = Attention(self._config, [len(s) for s in sequences], calculator)
        table = checkpoint.tensor(EMBEDDING)
        x = to_float32(table._replace(data=table.data[np.concatenate(sequences)]))
        self._x = Streams(x, x.copy() if recipe.follow > 0 else x)

    def layer(self, index: int, finished: LayerResult | None) -> LayerResult:
        """Quantise one decoder layer, or take what is finished, and pass through it."""
        fitter = Fitter(self._recipe, self._calculator)
        if finished is not None:
            fitter = Fitter(self._recipe, self._calculator, finished.matrices, finished.tensors)
        prefix = f"model.layers.{index}"
        self._add(self._attend(fitter, prefix))
        norm = f"{prefix}.post_attention_layernorm.weight"
        x = self._normed(norm)
        if self._config.is_moe_layer(index):
            self._add(experts_through(fitter, self._checkpoint, f"{prefix}.mlp", x))
        else:
            self._add(ffn_through(fitter, self._checkpoint, f"{prefix}.mlp", x, norm=norm))
        return finished or LayerResult(
            index=index, matrices=fitter.matrices, tensors=fitter.tensors, errors=fitter.errors
        )

    def head(self, index: int, finished: LayerResult | None) -> LayerResult:
        """Quantise the vocabulary head."""
        if finished is not None:
            return finished
        fitter = Fitter(self._recipe, self._calculator)
        name = head_name(self._config)
        fitter.fit("head", {name: to_float32(self._checkpoint.tensor(name))}, self._normed(FINAL_NORM))
        return LayerResult(index=index, matrices=fitter.matrices, errors=fitter.errors)

    def _attend(self, fitter: Fitter, prefix: str) -> Streams:
        norm = f"{prefix}.input_layernorm.weight"
        weights = read_matrices(
            self._checkpoint, [f"{prefix}.self_attn.{part}_proj.weight" for part in "qkv"]
        )
        gains = to_float32(self._checkpoint.tensor(norm))
        weights, x = fitter.smooth_norm("qkv", weights, self._normed(norm), norm, gains)
        q, k, v = fitter.through("qkv", weights, x)
        weights = read_matrices(self._checkpoint, [f"{prefix}.self_attn.o_proj.weight"])
        weights, attended = fitter.smooth_rows(
            "o",
            weights,
            q.with_others(self._attention, k, v),
            f"{prefix}.self_attn.v_proj.weight",
            self._attention.value_rows,
        )
        return fitter.through("o", weights, attended)[0]

    def _normed(self, name: str) -> Streams:
        weight = to_float32(self._checkpoint.tensor(name))
        return self._x.map(lambda x: rms_norm(x, weight, self._config.rms_norm_eps))

    def _add(self, y: Streams) -> None:
        self._x = self._x.with_others(np.add, y)
