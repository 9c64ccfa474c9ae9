"""What arguments of ``plan`` may be, whatever the model and the devices are."""

from __future__ import annotations

import math

from ernie_accel.errors import ArgumentError

__all__ = ["check_counts", "check_switches", "check_utilization"]


def check_counts(**values: object) -> None:
    """Raise ArgumentError for any that is neither None nor a whole number of at least 1."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise ArgumentError(f"{name}={value!r}: must be None or a whole number of at least 1")


def check_switches(**values: object) -> None:
    """Raise ArgumentError for any that is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"{name}={value!r}: must be True or False")


def check_utilization(value: object) -> None:
    """Raise ArgumentError unless it is a share of memory that makes sense."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not 0.1 <= number <= 1:
        raise ArgumentError(f"utilization={value!r}: must be from 0.1 to 1")
