"""What loading takes while it goes on, which may be more than what the model takes afterwards."""

from __future__ import annotations

from ernie_accel.architecture import tensor_specs
from ernie_accel.architecture.counts import parameter_counts
from ernie_accel.planner.memory import DeviceMemory, footprint_of
from ernie_accel.planner.setting import Setting
from ernie_accel.quant.memory import calibration_bytes
from ernie_accel.quant.prepare import CALIBRATED
from ernie_accel.quant.recipe import Recipe

__all__ = ["loading_bytes", "mapped_bytes"]

_VIRTUAL_ITEM = 2
"""Bytes of a value of a virtual checkpoint, which makes a tensor when it is asked for."""


def mapped_bytes(setting: Setting, memory: tuple[DeviceMemory, ...]) -> int:
    """Return the weights that are read where the file is mapped: of a packed directory, unless it is copied."""
    resident = getattr(setting.options.backend_options, "resident", False)
    mapped = setting.on_cpu and setting.subject.packed is not None and not resident
    return memory[0].weight_bytes if mapped else 0


def loading_bytes(setting: Setting, memory: tuple[DeviceMemory, ...]) -> int | None:
    """Return the peak of anonymous memory while the first load goes on; None where other processes load.

    Tensors of a directory are mapped, so they do not count. Calibration comes before the weights are packed, and what
    it took is free again by then.
    """
    if not setting.on_cpu:
        return None
    stage = memory[0]
    weights = stage.weight_bytes - mapped_bytes(setting, memory)
    made = _virtual(setting, stage) if setting.subject.virtual else 0
    besides = int(stage.weight_bytes * footprint_of(setting).loading)
    return max(weights + made + besides, _calibration(setting)) + stage.runtime


def _virtual(setting: Setting, stage: DeviceMemory) -> int:
    """Bytes of tensors that are made to be packed: the vocabulary first, when there is nothing else, then layers."""
    config = setting.subject.config
    specs = tensor_specs(config)
    layers = max(spec.size for name, spec in specs.items() if ".layers." in name)
    table = config.vocab_size * config.hidden_size
    first = stage.weights.get("embedding", 0) + stage.weights.get("head", 0) + _VIRTUAL_ITEM * table
    return max(_VIRTUAL_ITEM * layers, first - stage.weight_bytes)


def _calibration(setting: Setting) -> int:
    """Bytes that choosing the codes takes, by the same rule that ``Model.load`` decides by."""
    config, precision = setting.subject.config, setting.precision
    parameters = sum(parameter_counts(config).values())
    quantised = setting.subject.stored is not None or setting.subject.packed is not None
    if precision not in ("int8", "int4") or quantised or parameters > CALIBRATED or config.head_dim % 16:
        return 0
    if not setting.packs:
        return 0
    recipe = Recipe.for_precision("int8" if precision == "int8" else "int4").short(parameters)
    return calibration_bytes(config, recipe, recipe.tokens)
