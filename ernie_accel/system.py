"""What the operating system lets this process use: processors and memory.

Read from ``/proc`` and ``/sys`` each time, as limits may change; ``root`` stands for ``/`` so that tests can show
another machine. Control groups of version 1 and 2 are understood; a process is bound by every group above it too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from ernie_accel.interrupts import deferred

__all__ = [
    "affinity",
    "available_memory",
    "available_threads",
    "cpu_quota",
    "memory_limit",
    "peak_memory",
    "physical_cores",
    "processor_flags",
    "return_freed_memory",
    "total_memory",
]

_ROOT = Path("/")


def available_threads(root: Path = _ROOT) -> int:
    """Return the number of threads worth using: one a physical core, within affinity and cgroup quota; at least 1.

    A quota of 2.5 processors gives 2: a third thread would be stopped for half of every period while others wait.
    """
    cores = physical_cores(root, affinity())
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def available_memory(root: Path = _ROOT) -> int:
    """Return the bytes that this process may still take: what machine and cgroups leave, caches counted as free."""
    free = [_meminfo(root, "MemAvailable")]
    for limit, used in _memory_groups(root):
        free.append(max(0, limit - used))
    known = [value for value in free if value is not None]
    return min(known) if known else _physical_memory()


def affinity() -> frozenset[int]:
    """Return the logical processors that the scheduler may give to this process."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def processor_flags(root: Path = _ROOT) -> frozenset[str]:
    """Return the features of the processor as Linux names them, "avx512_bf16" for instance; none elsewhere."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def physical_cores(root: Path, cpus: Collection[int]) -> int:
    """Return how many physical cores ``cpus`` lie on; one each where the system doesn't tell."""
    cores = {
        _read(root / f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") or str(n) for n in cpus
    }
    return max(1, len(cores))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the smallest processor quota of this process's cgroups, in processors; None where there is none."""
    quotas = [_quota(folder) for folder in (*_groups(root, ""), *_groups(root, "cpu"))]
    return min((q for q in quotas if q is not None), default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Return the smallest memory limit of this process's cgroups, bytes; None where there is none."""
    total = total_memory(root)
    return min((limit for limit, _ in _memory_groups(root) if limit < total), default=None)


def total_memory(root: Path = _ROOT) -> int:
    """Return the machine's memory, bytes."""
    total = _meminfo(root, "MemTotal")
    return _physical_memory() if total is None else total


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, bytes; 0 where the system doesn't tell."""
    if sys.platform == "win32":
        return 0
    if sys.platform.startswith("linux"):
        # getrusage counts what this process was before it became Python, too
        with suppress(OSError, ValueError, IndexError):
            return 1024 * int(_own_status().split(b"VmHWM:", 1)[1].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _own_status() -> bytes:
    # A Ctrl-C between opening and `with` would leave the file open; each result asks for this, so the moment comes.
    with deferred(), open("/proc/self/status", "rb") as status:
        return status.read()


def return_freed_memory() -> None:
    """Give memory that was freed back to the system now, where the C library keeps it for later (glibc)."""
    import ctypes

    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be asked
        return
    trim(0)


def _quota(folder: Path) -> float | None:
    both = _read(folder / "cpu.max")  # version 2: "200000 100000" or "max 100000"
    quota, _, period = both.partition(" ") if both else (_read(folder / "cpu.cfs_quota_us"), "", "")
    period = period or _read(folder / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:  # "max", -1 or no such file
        return None
    return int(quota) / int(period)


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use (without caches that the kernel can drop) of each cgroup that has a limit."""
    kinds = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_name, used_name, cache_name in kinds:
        for folder in _groups(root, controller):
            limit, used = _read(folder / limit_name), _read(folder / used_name)
            if limit.isdecimal() and used.isdecimal():
                yield int(limit), max(0, int(used) - _field(folder / "memory.stat", cache_name))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and those above; controller "" is the one tree of version 2.

    Inside a container the path is often that of the host, whose folders don't show; the mount point itself then is
    the container's group.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            mount = _mount(root, names)
            here = mount / path.strip("/")
            yield from (folder for folder in (here, *here.parents) if mount in (folder, *folder.parents))


def _mount(root: Path, controllers: str) -> Path:
    base = root / "sys/fs/cgroup"
    if controllers:
        return base / controllers
    return base / "unified" if (base / "unified").is_dir() else base


def _meminfo(root: Path, key: str) -> int | None:
    value = _field(root / "proc/meminfo", key + ":")
    return value * 1024 if value else None


def _field(path: Path, key: str) -> int:
    """Return the number after ``key`` in a file of "key number ..." lines; 0 if it isn't there."""
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == key and words[1].isdecimal():
            return int(words[1])
    return 0


def _physical_memory() -> int:
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
