from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from ernie_accel import system

GIB = 1 << 30


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def machine(root: Path, *, siblings: tuple[str, ...], available: int = 8 * GIB) -> None:
    for number, text in enumerate(siblings):
        write(root, f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", text + "\n")
    write(root, "proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {available // 1024} kB\n")


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "affinity", lambda: frozenset(range(4)))


def test_one_thread_for_each_physical_core(tmp_path: Path) -> None:
    machine(tmp_path, siblings=("0,2", "1,3", "0,2", "1,3"))
    assert system.available_threads(tmp_path) == 2


def test_every_processor_counts_where_topology_is_hidden(tmp_path: Path) -> None:
    assert system.available_threads(tmp_path) == 4


@pytest.mark.parametrize(("quota", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4)])
def test_quota_of_version_2_is_rounded_down(tmp_path: Path, quota: str, threads: int) -> None:
    machine(tmp_path, siblings=("0", "1", "2", "3"))
    write(tmp_path, "proc/self/cgroup", "0::/user/job\n")
    write(tmp_path, "sys/fs/cgroup/user/job/cpu.max", quota)
    assert system.available_threads(tmp_path) == threads


def test_a_group_further_up_binds_too(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/user/job\n")
    write(tmp_path, "sys/fs/cgroup/user/cpu.max", "150000 100000")
    write(tmp_path, "sys/fs/cgroup/user/job/cpu.max", "300000 100000")
    assert system.cpu_quota(tmp_path) == 1.5


def test_quota_of_version_1_in_a_container(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "3:cpu,cpuacct:/docker/abc\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert system.cpu_quota(tmp_path) == 2.0


def test_no_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "3:cpu:/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert system.cpu_quota(tmp_path) is None


def test_memory_is_the_tightest_of_machine_and_groups(tmp_path: Path) -> None:
    machine(tmp_path, siblings=("0",), available=6 * GIB)
    assert system.available_memory(tmp_path) == 6 * GIB
    write(tmp_path, "proc/self/cgroup", "0::/job\n")
    write(tmp_path, "sys/fs/cgroup/job/memory.max", str(4 * GIB))
    write(tmp_path, "sys/fs/cgroup/job/memory.current", str(3 * GIB))
    write(tmp_path, "sys/fs/cgroup/job/memory.stat", f"anon {GIB}\ninactive_file {2 * GIB}\n")
    assert system.available_memory(tmp_path) == 3 * GIB  # file cache can be dropped
    assert system.memory_limit(tmp_path) == 4 * GIB


def test_memory_of_version_1(tmp_path: Path) -> None:
    machine(tmp_path, siblings=("0",))
    write(tmp_path, "proc/self/cgroup", "4:memory:/docker/abc\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2 * GIB))
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", str(3 * GIB))
    assert system.available_memory(tmp_path) == 0
    assert system.memory_limit(tmp_path) == 2 * GIB


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    machine(tmp_path, siblings=("0",))
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", "1")
    assert system.memory_limit(tmp_path) is None


def test_this_machine_has_something_to_offer() -> None:
    assert system.available_threads() >= 1
    assert system.available_memory() > 0
    assert system.total_memory() > 0
    assert system.peak_memory() > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_goes_back_to_the_system() -> None:
    program = """
from ernie_accel import system
from ernie_accel.bench.memory import resident
kept = []
pieces = [b"x" * 100_000 for _ in range(2000)]  # small enough to lie on the heap
kept.append(b"x" * 100_000)  # above them, so that the heap's end is in use
before = resident().own
del pieces
system.return_freed_memory()
print(before - resident().own)
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(out) > 150_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_of_this_program_and_not_of_what_started_it() -> None:
    child = "from ernie_accel.system import peak_memory; print(peak_memory())"
    parent = f"""
import os, sys
large = b"x" * (300 << 20)
os.execv(sys.executable, [sys.executable, "-c", {child!r}])
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 200 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ctrl_c_leaves_no_file_open_while_the_peak_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[IO[bytes]] = []

    def open_and_interrupt(path: str, mode: str) -> IO[bytes]:
        files.append(open(path, mode))  # noqa: SIM115 - who reads it closes it
        signal.raise_signal(signal.SIGINT)
        return files[0]

    monkeypatch.setattr(system, "open", open_and_interrupt, raising=False)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            system.peak_memory()
    finally:
        signal.signal(signal.SIGINT, old)
    assert [file.closed for file in files] == [True]
