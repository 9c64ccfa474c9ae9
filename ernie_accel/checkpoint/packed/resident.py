"""A whole file in anonymous memory, whose pages can be large; those of a mapped file have 4 KiB."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

__all__ = ["file_state", "read_into_memory"]

_LARGE_PAGE = 2 << 20


def file_state(descriptor: int) -> tuple[int, ...]:
    """Which file it is and what tells a later change of it: device, inode, size and time."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_into_memory(path: Path, threads: int) -> tuple[mmap.mmap, tuple[int, ...]]:
    """Read a file with several threads: what takes the time is the system making the memory.

    Returns the memory, and the file's state after it was read. Raises OSError.
    """
    from concurrent.futures import ThreadPoolExecutor  # takes longer to import than a mapped model to load

    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        memory = _memory(max(1, -(-size // _LARGE_PAGE)) * _LARGE_PAGE)
        parts = max(1, min(threads, 8))
        bounds = [size * part // parts for part in range(parts + 1)]
        with memoryview(memory) as view, ThreadPoolExecutor(parts) as pool:
            for job in [pool.submit(_read, path, view[a:b], a) for a, b in pairwise(bounds)]:
                job.result()
        return memory, file_state(file.fileno())


def _memory(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # private: pages that could be shared with a child are small ones
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _read(path: Path, target: memoryview, offset: int) -> None:
    with target, path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(target):
            count = file.readinto(target[done:])
            if not count:
                raise OSError(f"ends at byte {offset + done}")
            done += count
