from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from ernie_accel.backends.static_graph import memory as memory_module
from ernie_accel.backends.static_graph.memory import SharedMemory

PAGE = mmap.PAGESIZE


def used(memory: SharedMemory) -> int:
    """Bytes that the system has given for the region."""
    return os.fstat(memory.fd).st_blocks * 512


def test_arrays_are_zero_and_of_their_shape() -> None:
    memory = SharedMemory()
    array = memory.zeros((2, 3), "float32")
    assert array.shape == (2, 3)
    assert array.dtype == np.float32
    assert not array.any()
    assert array.flags.writeable
    assert memory.zeros((0, 4), "float32").shape == (0, 4)
    memory.close()


def test_who_maps_the_descriptor_sees_the_same_memory() -> None:
    memory = SharedMemory()
    memory.zeros((100,), "int8")
    array = memory.zeros((4,), "int64")
    theirs = np.ndarray((4,), np.int64, mmap.mmap(memory.fd, memory.size), memory.offset(array) or 0)
    array[2] = 7
    assert theirs[2] == 7
    memory.close()


def test_a_part_is_found_and_a_copy_is_not() -> None:
    memory = SharedMemory()
    first, second = memory.zeros((8, 4), "float32"), memory.zeros((8, 4), "float32")
    assert memory.offset(first) == 0
    assert memory.offset(second[3:5]) == PAGE + 3 * 16
    assert memory.offset(second.copy()) is None
    assert memory.offset(second[:, :2]) is None
    memory.close()


def test_pages_are_taken_when_written_and_given_back_with_the_last_view() -> None:
    memory = SharedMemory()
    array = memory.zeros((64 * PAGE,), "uint8")
    assert used(memory) == 0
    array[:] = 1
    assert used(memory) >= array.nbytes
    view = array[5:10]
    del array
    other = memory.zeros((PAGE,), "uint8")
    other[:] = 1
    assert view.all()
    assert used(memory) >= 65 * PAGE
    del view
    again = memory.zeros((64 * PAGE,), "uint8")
    assert memory.offset(again) == 0
    assert not again.any()
    assert used(memory) <= 65 * PAGE
    memory.close()


def test_room_that_is_given_back_joins_its_neighbours() -> None:
    memory = SharedMemory()
    arrays = [memory.zeros((PAGE,), "uint8") for _ in range(6)]
    for i in (1, 4, 2, 0, 5, 3):
        arrays[i] = memory.zeros((0,), "uint8")
    del arrays
    memory.zeros((1,), "uint8")
    whole = memory.zeros((memory.size - PAGE,), "uint8")
    assert memory.offset(whole) in (0, PAGE)
    memory.close()


def test_a_system_that_gives_no_pages_back_still_gives_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_REMOVE", raising=False)
    memory = SharedMemory()
    array = memory.zeros((10,), "uint8")
    array[:] = 1
    del array
    assert not memory.zeros((10,), "uint8").any()
    memory.close()


def test_close_leaves_arrays_and_no_descriptor_of_ours() -> None:
    memory = SharedMemory()
    array, fd = memory.zeros((16,), "uint8"), memory.fd
    memory.close()
    memory.close()
    array[3] = 1
    assert array.sum() == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_more_than_there_can_be_is_a_memory_error() -> None:
    memory = SharedMemory()
    with pytest.raises(MemoryError, match="bytes of shared memory"):
        memory.zeros((1 << 62,), "uint8")
    memory.close()


def test_where_little_can_be_mapped_less_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "MOST_BYTES", 1 << 62)
    memory = SharedMemory()
    assert 1 << 30 <= memory.size < 1 << 62
    memory.close()


def test_a_system_without_memfd_has_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = SharedMemory()
    array = memory.zeros((3,), "int32")
    array[:] = 5
    assert memory.offset(array) == 0
    memory.close()
