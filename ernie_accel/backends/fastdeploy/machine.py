"""What this machine has for FastDeploy: packages of an interpreter, GPUs, shared memory. Imports and starts nothing."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ernie_accel import env
from ernie_accel.backends.fastdeploy_packages import NAMES, Package, installed

__all__ = ["Gpu", "Packages", "gpus", "packages", "port_is_free", "shared_memory", "used"]

LOOK_SECONDS = 30.0
PADDLES = (
    *("paddlepaddle-gpu", "paddlepaddle", "paddlepaddle-xpu", "paddle-iluvatar-gpu"),
    *("paddle-metax-gpu", "paddle-gcu", "paddle-intel-hpu"),
)
OTHERS = ("xgrammar",)

_QUERY = "index,name,compute_cap,driver_version,memory.total,memory.free"
_PROGRAM = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps({"python": list(sys.version_info[:3]), "versions": {n: of(n) for n in sys.argv[1:]}}))
"""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes. ``capability`` is ten times the compute capability: 90 for 9.0."""

    index: int
    name: str
    capability: int
    driver: str
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Packages:
    """What an interpreter has installed.

    Attributes:
        python: Its version; () if it does not start.
        versions: Of the distributions that matter, by name; None where absent.
        problem: Why nothing is known, "" otherwise.
    """

    python: tuple[int, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    problem: str = ""

    @property
    def fastdeploy(self) -> tuple[Package, ...]:
        """Distributions that install a module ``fastdeploy``."""
        return installed(self.versions.get)

    @property
    def paddle(self) -> tuple[str, str] | None:
        """Name and version of Paddle, None without."""
        return next(
            ((name, number) for name in PADDLES if (number := self.versions.get(name)) is not None), None
        )


def packages(python: str | None, environment: Mapping[str, str]) -> Packages:
    """Ask an interpreter (None: this one) about its packages, by their metadata."""
    names = (*NAMES, *PADDLES, *OTHERS)
    if python is None and not environment:
        found = {package.name: package.version for package in installed()}
        rest = {name: _own_version(name) for name in (*PADDLES, *OTHERS)}
        return Packages(python=tuple(sys.version_info[:3]), versions={**found, **rest})
    command = [python or sys.executable, "-c", _PROGRAM, *names]
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LOOK_SECONDS,
            env=env.inherited(environment, interpreter=command[0]),
        )
        answer = json.loads(run.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return Packages(problem=f"The interpreter {command[0]} does not answer: {type(error).__name__}.")
    return Packages(python=tuple(answer["python"]), versions=answer["versions"])


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that nvidia-smi lists; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LOOK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = (_gpu(line) for line in run.stdout.splitlines()) if run.returncode == 0 else ()
    return tuple(gpu for gpu in found if gpu is not None)


def used(found: Sequence[Gpu], needed: int, named: Sequence[int] | None) -> tuple[Gpu, ...]:
    """Return the GPUs that so many of a model's parts will be on: the first of those named, else of all."""
    if named is None:
        return tuple(found[:needed])
    return tuple(gpu for index in named[:needed] for gpu in found if gpu.index == index)


def is_linux_x86() -> bool:
    """Whether this is the one kind of machine that FastDeploy's GPU wheels are made for."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def port_is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def shared_memory() -> int | None:
    """Bytes free in /dev/shm; None where there is none."""
    path = Path("/dev/shm")
    return shutil.disk_usage(path).free if path.is_dir() else None


def _gpu(line: str) -> Gpu | None:
    fields = [part.strip() for part in line.split(",")]
    try:
        index, name, capability, driver, total, free = fields
        return Gpu(
            int(index),
            name,
            round(10 * float(capability)),
            driver,
            int(float(total)) << 20,
            int(float(free)) << 20,
        )
    except ValueError:  # a card that reports [N/A], or a message
        return None


def _own_version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
