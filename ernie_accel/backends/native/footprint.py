"""Bytes of the packed weights of a model, by class, before any is packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ernie_accel.checkpoint.packed.layout import QUANTISED, Slot, matrix_bytes, units

if TYPE_CHECKING:
    from ernie_accel import _native
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["table_bytes", "weight_bytes"]

_HEADS = {"int8": "nested8", "int4": "nested6"}
_INT4_SCALE = 128
"""``kInt4Scale`` in ``csrc/model/config.h``."""


def weight_bytes(config: ModelConfig, precision: str, sizes: _native.Config) -> dict[str, int]:
    """Return the bytes of a model that is packed by nearest rounding; calibrated codes take within one percent of it.

    With ``sizes.multi_token`` those of multi-token prediction are counted too, as class ``mtp``.

    Layers of one kind are alike, so one of each is looked at, with one expert.
    """
    total: Counter[str] = Counter(
        embedding=0, attention=0, ffn=0, experts=0, shared_experts=0, router=0, head=0
    )
    for slot, times in _slots(config):
        total[slot.role] += times * _bytes(slot, precision, sizes)
    layers, hidden = config.num_hidden_layers, _up(config.hidden_size, 16)
    moe = sum(config.is_moe_layer(index) for index in range(layers))
    total["router"] = 4 * moe * (_up(config.moe_num_experts, 16) * hidden + config.moe_num_experts)
    total["norm"] = 4 * hidden * (2 * layers + 1)
    if sizes.multi_token:
        slots = units(_one_layer(config), multi_token=True)[-1].slots
        kept = "int8" if precision in QUANTISED else precision
        total["mtp"] = sum(_bytes(slot, kept, sizes) for slot in slots) + 4 * hidden * 4
    return dict(total)


def table_bytes(config: ModelConfig, precision: str) -> int:
    """Return the bytes of ``weight_bytes`` that are only looked up in: a table beside a tied head in another format."""
    if not config.tie_word_embeddings or precision not in QUANTISED:
        return 0
    return sum(
        matrix_bytes(slot, "bf16", 0, 0)
        for unit in units(_one_layer(config))
        for slot in unit.slots
        if slot.kind == "embedding"
    )


def _slots(config: ModelConfig) -> Iterator[tuple[Slot, int]]:
    """Yield a packed matrix of each kind and how many the model has of it."""
    layers = config.num_hidden_layers
    moe = sum(config.is_moe_layer(index) for index in range(layers))
    one = _one_layer(config)
    kinds = (
        (replace(one, moe_layer_start_index=1), layers - moe),
        (replace(one, moe_layer_start_index=0), moe),
    )
    for unit in units(one):
        if unit.layer is None:
            yield from ((slot, 1) for slot in unit.slots)
    for kind, times in kinds:
        if times:
            for unit in units(kind):
                for slot in unit.slots if unit.layer is not None else ():
                    yield slot, times * (config.moe_num_experts if slot.role == "experts" else 1)


def _one_layer(config: ModelConfig) -> ModelConfig:
    one = replace(config, num_hidden_layers=1, moe_layer_interval=1, moe_layer_end_index=0)
    return replace(one, moe_num_experts=1, moe_k=1) if config.is_moe else one


def _bytes(slot: Slot, precision: str, sizes: _native.Config) -> int:
    if precision not in QUANTISED:
        return matrix_bytes(slot, precision, 0, 0)
    if slot.kind == "embedding":
        return matrix_bytes(slot, "bf16", 0, 0)
    if slot.kind == "head":
        return matrix_bytes(slot, _HEADS[precision], sizes.head_group, 0)
    group = sizes.down_group if slot.kind == "down" else sizes.group
    if precision == "int4" and group < _INT4_SCALE:
        group = _INT4_SCALE // group * group
    return matrix_bytes(slot, precision, group, 0)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
