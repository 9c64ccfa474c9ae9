"""Packs a checkpoint without running it: what files of packed weights are written from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_accel.backends.native.loader import (
    TensorSource,
    load_layer,
    load_multi_token,
    set_embedding,
    set_head,
)
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.packed import PackedMatrix, Unit
from ernie_accel.errors import CheckpointError

if TYPE_CHECKING:
    from ernie_accel import _native

__all__ = ["NativePacker"]


class NativePacker:
    """Implements ``ernie_accel.backends.base.Packer``: a model that gives each matrix away once it is packed."""

    def __init__(self, model: _native.Model, checkpoint: Checkpoint) -> None:
        self._model = model
        self._checkpoint = checkpoint

    def pack(self, unit: Unit) -> list[PackedMatrix]:
        """Return the packed matrices of a unit, in its order."""
        source = TensorSource(self._checkpoint)
        try:
            if unit.layer is not None:
                load_layer(self._model, source, unit.layer)
            elif unit.name == "embedding":
                set_embedding(self._model, source)
            elif unit.name == "mtp":
                load_multi_token(self._model, source)
            else:
                set_head(self._model, source)
            return [self._take(slot.name) for slot in unit.slots]
        except ValueError as error:
            raise CheckpointError(f"{self._checkpoint.info.name}: {error}") from error

    def _take(self, name: str) -> PackedMatrix:
        precision, group, exact, panels = self._model.take_packed(name)
        return PackedMatrix(name, precision, group, tuple(exact), panels)
