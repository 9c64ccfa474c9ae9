"""Will it fit, on what, split how, and how fast can it be: answered before a byte is loaded.

``plan`` makes a ``MemoryPlan`` from a configuration alone; ``advise`` chooses among plans.
"""

from __future__ import annotations

from ernie_accel.planner.advice import Advice, advise
from ernie_accel.planner.devices import Device
from ernie_accel.planner.plan import MemoryPlan
from ernie_accel.planner.planning import plan

__all__ = ["Advice", "Device", "MemoryPlan", "advise", "plan"]
