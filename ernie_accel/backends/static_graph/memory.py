"""Memory that this process and a child of it both see: mapped from one descriptor, so it has no name to leave behind.

Far more is mapped than will be used: pages take room only once they are written to, and give it back when the array
that they belong to is gone.
"""

from __future__ import annotations

import bisect
import math
import mmap
import os
import tempfile
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SharedMemory", "descriptor"]

MOST_BYTES, LEAST_BYTES = 1 << 40, 1 << 30


class SharedMemory:
    """Makes NumPy arrays in one region, which a child maps whole.

    Attributes:
        fd: Descriptor of the region, for the child; it stays open until ``close``.
        size: Bytes of the region.

    Raises MemoryError if the system has no such memory.
    """

    def __init__(self) -> None:
        self.fd = descriptor(0)
        self.size, self._memory = _mapped(self.fd)
        self._begin = np.frombuffer(self._memory, np.uint8, 1).ctypes.data
        self._free = [(0, self.size)]  # beginning and end, ascending, never touching each other
        self._dropped: deque[tuple[int, int]] = deque()

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return zeros of that shape, C-contiguous; MemoryError if there is no room."""
        kind = np.dtype(dtype)
        pages = -(-max(1, math.prod(shape) * kind.itemsize) // mmap.PAGESIZE)
        start, end = self._take(pages * mmap.PAGESIZE)
        array: npt.NDArray[Any] = np.ndarray(shape, kind, self._memory, start)
        weakref.finalize(array, self._dropped.append, (start, end)).atexit = False
        return array

    def offset(self, array: npt.NDArray[Any]) -> int | None:
        """Say how many bytes into the region a contiguous array begins; None for any other."""
        offset = array.ctypes.data - self._begin
        inside = offset >= 0 and offset + array.nbytes <= self.size
        return offset if inside and array.flags.c_contiguous else None

    def close(self) -> None:
        """Close the descriptor; arrays stay valid."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _take(self, size: int) -> tuple[int, int]:
        self._collect()
        for i, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[i : i + 1] = [(start + size, end)] if end - start > size else []
                return start, start + size
        raise MemoryError(f"{size} bytes of shared memory are not to be had: {self.size} are in use")

    def _collect(self) -> None:
        """Give back what arrays held that are gone, which may happen at any moment and in any thread."""
        while self._dropped:
            start, end = self._dropped.popleft()
            _clear(self._memory, start, end)
            at = bisect.bisect(self._free, (start, end))
            if at < len(self._free) and self._free[at][0] == end:
                end = self._free.pop(at)[1]
            if at > 0 and self._free[at - 1][1] == start:
                at -= 1
                start = self._free.pop(at)[0]
            self._free.insert(at, (start, end))


def descriptor(size: int) -> int:
    """Open memory without a name: a memfd where there is one, else a file that is deleted already.

    Raises MemoryError if the system has none.
    """
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("ernie_accel", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
    except OSError as error:
        raise MemoryError(f"{size} bytes of shared memory are not to be had: {error}") from error
    return fd


def _mapped(fd: int) -> tuple[int, mmap.mmap]:
    """Map as much as the system lets us."""
    size = MOST_BYTES
    while True:
        try:
            os.ftruncate(fd, size)
            return size, mmap.mmap(fd, size)
        except (OSError, ValueError, OverflowError) as error:
            if size <= LEAST_BYTES:
                os.close(fd)
                raise MemoryError(f"{size} bytes of shared memory cannot be mapped: {error}") from error
            size //= 4


def _clear(memory: mmap.mmap, start: int, end: int) -> None:
    """Make a range zero and, where the system can, give its pages back."""
    try:
        memory.madvise(mmap.MADV_REMOVE, start, end - start)
    except (AttributeError, OSError, ValueError):
        memory[start:end] = bytes(end - start)
