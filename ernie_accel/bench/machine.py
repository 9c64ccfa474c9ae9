"""What a benchmark ran on: without it a figure says nothing."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ernie_accel.system import affinity, total_memory

__all__ = ["busy", "describe", "dot_product_peak", "read_bandwidth", "versions"]

PROBE_BYTES = 256 << 20
"""Several times the last cache of today's processors, and about what a small model's weights take."""

PROBE_PASSES = 4


def describe() -> dict[str, str]:
    """Processor, usable cores, memory, operating system and Python of this machine."""
    return {
        "processor": _field(Path("/proc/cpuinfo"), "model name")
        or platform.processor()
        or platform.machine(),
        "cores": str(len(affinity())),
        "memory": f"{total_memory() / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each distribution; those that are not installed are left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_bandwidth(threads: int) -> float:
    """Measure how fast so many threads read memory, bytes a second: the best of a few passes over 256 MiB.

    This is the ceiling of decoding, which reads every weight once a step. Takes a tenth of a second or two.
    """
    from ernie_accel import _native

    return _native.read_bandwidth(PROBE_BYTES, threads, PROBE_PASSES)


def dot_product_peak(threads: int) -> float:
    """Measure how fast so many threads multiply int8 with AVX-512 VNNI, operations a second; 0 without it.

    Out of registers, so a ceiling of the arithmetic that prompts and large batches need. Takes a tenth of a second.
    """
    from ernie_accel import _native

    return _native.dot_product_peak(threads, PROBE_PASSES)


def busy(seconds: float = 2.0, path: Path = Path("/proc/stat")) -> float | None:
    """Return the share of all processors' time that others took in the next ``seconds``; None where nothing tells."""
    if not path.exists():
        return None
    before = _ticks(path)
    time.sleep(seconds)
    idle, total = (after - early for after, early in zip(_ticks(path), before, strict=True))
    return 1 - idle / total if total else 0.0


def _ticks(path: Path) -> tuple[int, int]:
    """Ticks since the start of the system: idle or waiting for disks, and all."""
    ticks = [int(number) for number in path.read_text(encoding="utf-8").split("\n")[0].split()[1:]]
    return ticks[3] + ticks[4], sum(ticks[:8])  # guests are counted in the first two already


def _field(path: Path, name: str) -> str:
    """Return the first value of a ``name: value`` file of the kernel; "" where there is none."""
    if not path.exists():
        return ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
