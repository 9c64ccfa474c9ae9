"""Devices: a catalogue of accelerators, the machine that this runs on, and strings such as ``"8xA100-80G"``."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ernie_accel import env, system
from ernie_accel.errors import ArgumentError
from ernie_accel.planner.links import LINKS, Link

__all__ = ["CATALOGUE", "Device", "Devices", "find_devices", "machine", "shared_out"]

Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, or the processors and memory of one machine.

    Attributes:
        name: As in ``devices="8xA100-80G"``.
        kind: ``"cpu"`` or ``"gpu"``.
        memory: Bytes that a program can have; of a cpu, those that are free.
        bandwidth: Of reading memory, bytes a second.
        tera16: Tera-operations a second of dense 16-bit matrices.
        tera8: ... of 8-bit ones; 0 where 8 bits gain nothing.
        fp8: Whether it multiplies FP8.
        bf16: Whether it computes in bfloat16.
        link: How several of them exchange data.
        per_node: Most of them in one machine.
        measured: Whether bandwidth and operations were measured here, not assumed or published.
    """

    name: str
    kind: Kind
    memory: int
    bandwidth: float
    tera16: float
    tera8: float = 0.0
    fp8: bool = False
    bf16: bool = True
    link: Link = LINKS["pcie4"]
    per_node: int = 8
    measured: bool = False


def _gpu(
    name: str,
    mebibytes: int,
    gigabytes: float,
    tera16: float,
    tera8: float,
    link: str,
    *,
    fp8: bool = False,
    bf16: bool = True,
) -> Device:
    return Device(
        name=name,
        kind="gpu",
        memory=mebibytes << 20,
        bandwidth=gigabytes * 1e9,
        tera16=tera16,
        tera8=tera8,
        fp8=fp8,
        bf16=bf16,
        link=LINKS[link],
    )


CATALOGUE: dict[str, Device] = {
    # memory as the driver shows it, MiB; bandwidth and dense operations from the makers' data sheets
    device.name: device
    for device in (
        _gpu("B200-180G", 183359, 8000, 2250, 4500, "nvlink5", fp8=True),
        _gpu("H200-141G", 143771, 4800, 989, 1979, "nvlink4", fp8=True),
        _gpu("H100-80G", 81559, 3350, 989, 1979, "nvlink4", fp8=True),
        _gpu("H800-80G", 81559, 3350, 989, 1979, "nvlink4-400", fp8=True),
        _gpu("H20-96G", 97871, 4000, 148, 296, "nvlink4", fp8=True),
        _gpu("H20-141G", 143771, 4800, 148, 296, "nvlink4", fp8=True),
        _gpu("A100-80G", 81920, 2039, 312, 624, "nvlink3"),
        _gpu("A100-40G", 40960, 1555, 312, 624, "nvlink3"),
        _gpu("A800-80G", 81920, 2039, 312, 624, "nvlink3-400"),
        _gpu("L40S-48G", 46068, 864, 362, 733, "pcie4", fp8=True),
        _gpu("L20-48G", 46068, 864, 119.5, 239, "pcie4", fp8=True),
        _gpu("A30-24G", 24258, 933, 165, 330, "pcie4"),
        _gpu("A10-24G", 23028, 600, 125, 250, "pcie4"),
        _gpu("RTX4090-24G", 24564, 1008, 165, 330, "pcie4", fp8=True),
        _gpu("RTX3090-24G", 24576, 936, 71, 142, "pcie4"),
        _gpu("V100-32G", 32510, 900, 125, 125, "nvlink3-400", bf16=False),
        _gpu("T4-16G", 15360, 320, 65, 130, "pcie3", bf16=False),
    )
}

_SPEC = re.compile(r"(?:(\d+)\s*[x×*]\s*)?([A-Za-z][\w\- ]*)")
_CPU = re.compile(r"cpu(?:-(\d+)G)?", re.IGNORECASE)


@dataclass(frozen=True)
class Devices:
    """Several equal devices; ``whole`` is the machine that they are parts of, None where each is there by itself."""

    device: Device
    count: int = 1
    whole: Device | None = None

    def __str__(self) -> str:
        if self.whole is not None:
            return f"{self.whole.name} in {self.count} parts"
        return self.device.name if self.count == 1 else f"{self.count}x{self.device.name}"


def shared_out(machine: Device, ranks: int) -> Devices:
    """Return a machine as what each of so many processes has that compute a model together: an even share of all."""
    if ranks == 1:
        return Devices(machine)
    share = replace(
        machine,
        memory=machine.memory // ranks,
        bandwidth=machine.bandwidth / ranks,
        tera16=machine.tera16 / ranks,
        tera8=machine.tera8 / ranks,
        per_node=ranks,
    )
    return Devices(share, ranks, machine)


def find_devices(spec: str | Device | None, *, threads: int | None = None, probe: bool = False) -> Devices:
    """Return what a string such as ``"8xA100-80G"``, ``"H100"`` or ``"cpu"`` names.

    Args:
        spec: None takes the accelerators of this machine that ``nvidia-smi`` shows, else its processors; ``"cpu-64G"``
            is a machine like this one with so many GiB free.
        threads: Of a cpu; None: one for each physical core.
        probe: Measure a cpu's bandwidth and arithmetic, which takes some tenths of a second; else they are assumed.

    Raises:
        ArgumentError: There is no such device.
    """
    if isinstance(spec, Device):
        return Devices(spec)
    if spec is None:
        return _installed() or Devices(machine(threads, probe))
    if not isinstance(spec, str):
        raise ArgumentError(f"devices={spec!r}: must be None, a string such as '8xA100-80G', or a Device")
    cpu = _CPU.fullmatch(spec.strip())
    if cpu:
        here = machine(threads, probe)
        if cpu[1]:
            if int(cpu[1]) < 1:
                raise ArgumentError(f"devices={spec!r}: must have at least 1 GiB, such as 'cpu-64G'")
            here = replace(here, name=f"cpu-{int(cpu[1])}G", memory=int(cpu[1]) << 30)
        return Devices(here)
    found = _SPEC.fullmatch(spec.strip())
    if found and (found[1] is None or 1 <= int(found[1]) <= 4096):
        return Devices(_named(found[2], spec), int(found[1] or 1))
    raise ArgumentError(
        f"devices={spec!r}: must look like 'cpu', 'H100' or '8xA100-80G' with 1 to 4096 devices"
    )


def _named(name: str, spec: str) -> Device:
    """The device of that name; without its memory, the first of that kind. Names of the driver's are understood too."""
    words = [word.removesuffix("B") if word.endswith("GB") else word for word in _words_of(name)]
    wanted = "-".join(word for word in words if not _FORM.fullmatch(word))
    for key, device in CATALOGUE.items():
        if wanted in (key.upper(), key.upper().partition("-")[0]):
            return device
    close = difflib.get_close_matches(wanted, [key.upper() for key in CATALOGUE], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ArgumentError(
        f"devices={spec!r}: no such device{hint}; known are cpu, {', '.join(CATALOGUE)}; any other is an "
        "ernie_accel.planner.Device(...)"
    )


_FORM = re.compile(r"NVIDIA|GEFORCE|TESLA|PCIE|NVL|SXM\d?|HBM\w*")
"""Words of a driver's name that say how a device is built, not which it is."""


def _words_of(name: str) -> list[str]:
    """``"NVIDIA A100-SXM4-80GB"`` word by word, in capitals; ``"RTX 4090"`` is one."""
    return re.sub(r"RTX\s+", "RTX", name.strip().upper()).replace("-", " ").split()


_ASSUMED_BANDWIDTH = 12e9
_MOST_ASSUMED = 300e9
_ASSUMED_TERA = 0.4


def machine(threads: int | None = None, probe: bool = False) -> Device:
    """Return the processors of this machine, and the memory that it and its control groups leave."""
    count = threads or env.threads() or system.available_threads()
    bandwidth = min(_ASSUMED_BANDWIDTH * count, _MOST_ASSUMED)
    tera8 = _ASSUMED_TERA * count
    if probe:
        bandwidth, tera8 = _probe(count, bandwidth, tera8)
    return Device(
        name="cpu",
        kind="cpu",
        memory=system.available_memory(),
        bandwidth=bandwidth,
        tera16=tera8 / 2,
        tera8=tera8,
        link=LINKS["memory"],
        per_node=1,
        measured=probe,
    )


def _probe(threads: int, bandwidth: float, tera8: float) -> tuple[float, float]:
    """Measure, where the native core is there to do it."""
    try:
        from ernie_accel.bench.machine import dot_product_peak, read_bandwidth

        return read_bandwidth(threads), dot_product_peak(threads) / 1e12 or tera8
    except ImportError:
        return bandwidth, tera8


def _installed() -> Devices | None:
    """The accelerators that ``nvidia-smi`` shows, by the catalogue's figures and their own memory; None without any."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return _listed(lines.splitlines())


def _listed(lines: Iterable[str]) -> Devices | None:
    """Read ``name, MiB`` lines; several kinds in one machine count as the smallest of them."""
    rows = [line.rpartition(",") for line in lines if "," in line]
    found = [_closest(name, int(size)) for name, _, size in rows if size.strip().isdecimal()]
    return Devices(min(found, key=lambda device: device.memory), len(found)) if found else None


def _closest(name: str, mebibytes: int) -> Device:
    """The catalogue's device of that model, with the memory that this one has; an unknown one counts as an A10."""
    words = set(re.split(r"[\s\-_]+", name.upper()))
    joined = re.sub(r"[\s\-_]+", "", name.upper())
    models = [d for key, d in CATALOGUE.items() if key.partition("-")[0] in words | {joined[-7:]}]
    like = min(models or [CATALOGUE["A10-24G"]], key=lambda device: abs((device.memory >> 20) - mebibytes))
    return replace(like, name=like.name if models else name.strip(), memory=mebibytes << 20)
