"""Directories of packed weights: what ``ernie_accel.quantize`` writes and ``Model.load`` maps."""

from __future__ import annotations

from ernie_accel.checkpoint.packed.header import WEIGHTS_NAME
from ernie_accel.checkpoint.packed.layout import PackedMatrix, Unit, units
from ernie_accel.checkpoint.packed.reader import PackedCheckpoint

__all__ = ["WEIGHTS_NAME", "PackedCheckpoint", "PackedMatrix", "Unit", "units"]
