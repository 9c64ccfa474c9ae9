"""Quantised weights of earlier loads on disk: bounded, found by all that they depend on, and never needed.

An entry is a directory of packed weights. It is made under another name and renamed; whoever maps it keeps what it has
mapped when the entry is removed. The entries used longest ago go first.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ernie_accel import env
from ernie_accel.architecture import ModelConfig
from ernie_accel.checkpoint.packed import WEIGHTS_NAME
from ernie_accel.checkpoint.packed.header import read_header
from ernie_accel.checkpoint.unfinished import DiskError
from ernie_accel.errors import CheckpointError

__all__ = ["Cache", "open_cache"]

_ABANDONED = 24 * 3600.0
"""Seconds after which what an ended process left unfinished is removed."""


def open_cache() -> Cache | None:
    """Return the cache that the environment names; None where it is switched off."""
    directory = env.cache()
    return None if directory is None else Cache(directory / "quantized", env.cache_limit())


class Cache:
    """A directory of entries and the bytes that they may take together."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self.limit = limit

    @property
    def hashes(self) -> Path:
        """Where hashes of source files are remembered."""
        return self.directory / "hashes"

    def find(self, key: str, config: ModelConfig) -> Path | None:
        """Return the weights of an entry that is sound by its header, None if there is none; a damaged one is removed.

        Raises:
            CheckpointError: It cannot be read now, which says nothing against it.
        """
        path = self.directory / key / WEIGHTS_NAME
        try:
            read_header(path, config)
        except CheckpointError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                return None
            if isinstance(error.__cause__, OSError):
                raise
            _remove(path.parent)
            return None
        with suppress(OSError):  # the time of the last use; a read-only cache goes without
            os.utime(path.parent)
        return path

    def add(self, key: str, write: Callable[[Path], None], size: int) -> Path | None:
        """Let ``write`` fill a new directory and keep it as the entry of that key; return the path of its weights.

        None where the cache cannot hold about ``size`` bytes or cannot be written, which is warned about: the load goes
        on without it. What ``write`` finds wrong with the source is raised.
        """
        if size > self.limit:
            return None
        work = self.directory / f".{key}.{uuid.uuid4().hex[:8]}"
        entry = self.directory / key
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            write(work)
            with suppress(OSError):  # another process was first
                os.replace(work, entry)
            return entry / WEIGHTS_NAME
        except (DiskError, OSError) as error:
            self.warn("kept in", error)
            return None
        finally:
            _remove(work)
            _remove(work.with_name(work.name + ".partial"))

    def warn(self, what: str, error: Exception) -> None:
        """Warn that quantised weights could not be ``what`` ("kept in", "read from") the cache."""
        warnings.warn(
            f"quantized weights could not be {what} {self.directory}, which costs another quantization: {error}; "
            "ERNIE_ACCEL_CACHE names another directory, or is set to 'off'",
            RuntimeWarning,
            stacklevel=3,
        )

    def _make_room(self, size: int) -> None:
        """Remove entries, oldest use first, until ``size`` more bytes fit the limit."""
        entries = []
        for path in self.directory.iterdir():
            with suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if not path.name.startswith("."):
                    entries.append((age, path, _size(path)))
                elif age > _ABANDONED:
                    _remove(path)
        entries = [entry for entry in entries if entry[1] != self.hashes]
        total = sum(taken for _, _, taken in entries)
        for _, path, taken in sorted(entries, reverse=True):
            if total + size <= self.limit:
                return
            _remove(path)
            total -= taken


def _size(directory: Path) -> int:
    return sum(item.stat().st_size for item in directory.iterdir())


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
