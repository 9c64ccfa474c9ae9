"""Every environment variable that the library reads, typed, under one prefix.

Variables are read when they are needed, never at import, so that a program may set them at any time before.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ernie_accel.errors import ArgumentError

__all__ = [
    "ISA_LEVELS",
    "cache",
    "cache_limit",
    "fastdeploy_python",
    "inherited",
    "isa",
    "threads",
    "unchanged",
]

ISA_LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
"""Instruction-set levels of the native backend, lowest first."""

_changing = threading.RLock()


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


def cache() -> Path | None:
    """``ERNIE_ACCEL_CACHE``: directory of what can be made again, or "off".

    Unset is ``$XDG_CACHE_HOME/ernie_accel``, ``~/.cache/ernie_accel`` without that; None where it is off or there is no
    home.
    """
    value = os.environ.get("ERNIE_ACCEL_CACHE", "").strip()
    if value.lower() == "off":
        return None
    if value:
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise ArgumentError(f"ERNIE_ACCEL_CACHE={value!r}: there is no such user; give a path") from error
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification has relative ones ignored
        return Path(base) / "ernie_accel"
    try:
        return Path.home() / ".cache" / "ernie_accel"
    except RuntimeError:
        return None


def cache_limit() -> int:
    """``ERNIE_ACCEL_CACHE_LIMIT``: bytes that cached quantised weights may take together; 4 GiB if unset."""
    value = os.environ.get("ERNIE_ACCEL_CACHE_LIMIT", "").strip()
    if not value:
        return 4 << 30
    if not value.isdecimal():
        raise ArgumentError(f"ERNIE_ACCEL_CACHE_LIMIT={value!r}: must be a whole number of bytes")
    return int(value)


def fastdeploy_python() -> str | None:
    """``ERNIE_ACCEL_FASTDEPLOY_PYTHON``: the interpreter that has FastDeploy 1.x; None, our own, if unset."""
    return os.environ.get("ERNIE_ACCEL_FASTDEPLOY_PYTHON", "").strip() or None


def inherited(further: Mapping[str, str], *, interpreter: str | None = None) -> dict[str, str]:
    """Return the environment of this process with further variables, for a process that it starts.

    Without variables that mean our Python where another ``interpreter`` than ours runs there.
    """
    ours = dict(os.environ)
    if interpreter not in (None, sys.executable):
        for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            ours.pop(name, None)
    return {**ours, **further}


@contextmanager
def unchanged(meanwhile: Mapping[str, str]) -> Iterator[None]:
    """Put the whole environment back at the end of the block; ``meanwhile`` are values for what is unset.

    One thread at a time: the block of another would be undone half way.
    """
    with _changing:
        before = dict(os.environ)
        os.environ.update({name: value for name, value in meanwhile.items() if name not in before})
        try:
            yield
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(
                {name: value for name, value in before.items() if os.environ.get(name) != value}
            )
