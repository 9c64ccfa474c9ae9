"""Quantization without data: every weight to the nearest code, scales by the least squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ernie_accel.architecture import tensor_specs
from ernie_accel.architecture.ernie4_5 import head_name
from ernie_accel.checkpoint.base import Checkpoint, to_float32
from ernie_accel.quant.calculator import Calculator
from ernie_accel.quant.fit import Fitter
from ernie_accel.quant.recipe import Kind, Recipe
from ernie_accel.quant.results import LayerResult

__all__ = ["kind_of", "quantise_data_free"]

_KINDS: dict[str, Kind] = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
}


def kind_of(name: str) -> Kind | None:
    """Return the kind of a layer's matrix by its ``-PT`` name, None of what is no quantised matrix (norms, router)."""
    parts = name.split(".")
    return _KINDS.get(parts[-2]) if len(parts) > 2 else None


def quantise_data_free(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    finished: Sequence[LayerResult] = (),
    threads: int | None = None,
    within: Callable[[int], None] | None = None,
) -> Iterator[LayerResult]:
    """Yield the results of layer after layer and then that of the head, as ``Calibration`` does.

    Nothing is exact and nothing is folded. ``within`` is called after each matrix with the number of weights of its
    layer that are done: a layer of a large mixture of experts takes its time. The other arguments and errors are those
    of ``Calibration``.
    """
    calculator, done = Calculator(threads), {result.index: result for result in finished}
    config = checkpoint.config
    specs = tensor_specs(config)
    for index in range(config.num_hidden_layers + 1):
        prefix = f"model.layers.{index}."
        names = [name for name in specs if name.startswith(prefix) and kind_of(name)]
        if index == config.num_hidden_layers:
            names = [head_name(config)]
        yield done.get(index) or _layer(checkpoint, Fitter(recipe, calculator), index, names, within)


def _layer(
    checkpoint: Checkpoint, fitter: Fitter, index: int, names: list[str], within: Callable[[int], None] | None
) -> LayerResult:
    weights = 0
    for name in names:
        tensor = to_float32(checkpoint.tensor(name))
        fitter.nearest(kind_of(name) or "head", {name: tensor})
        weights += tensor.size
        if within is not None:
            within(weights)
    return LayerResult(index=index, matrices=fitter.matrices, errors=fitter.errors)
