"""Every environment variable that the library reads, typed, under one prefix.

Variables are read when they are needed, never at import, so that a program may set them at any time before.
"""

from __future__ import annotations

import os

from ernie_accel.errors import ArgumentError

__all__ = ["ISA_LEVELS", "isa", "threads"]

ISA_LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
"""Instruction-set levels of the native backend, lowest first."""


def isa() -> str | None:
    """``ERNIE_ACCEL_ISA``: highest instruction set that the native backend may use; None if unset."""
    value = os.environ.get("ERNIE_ACCEL_ISA", "").strip().lower()
    if not value:
        return None
    if value not in ISA_LEVELS:
        raise ArgumentError(f"ERNIE_ACCEL_ISA={value!r}: must be one of {', '.join(ISA_LEVELS)}")
    return value


def threads() -> int | None:
    """``ERNIE_ACCEL_THREADS``: default number of threads of the native backend; None if unset."""
    value = os.environ.get("ERNIE_ACCEL_THREADS", "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ArgumentError(f"ERNIE_ACCEL_THREADS={value!r}: must be a whole number of at least 1")
    return int(value)
