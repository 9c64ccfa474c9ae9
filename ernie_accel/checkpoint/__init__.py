"""Files and tensors: reading and writing checkpoint directories without any framework."""

from __future__ import annotations

from ernie_accel.checkpoint.reader import inspect, open_checkpoint, read_settings
from ernie_accel.checkpoint.save import save_checkpoint

__all__ = ["inspect", "open_checkpoint", "read_settings", "save_checkpoint"]
