"""The Python that has FastDeploy 1.x: which one it is, and whether what it has will do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_accel import env
from ernie_accel.backends.base import Availability
from ernie_accel.backends.fastdeploy_packages import (
    CPU_RUNTIME,
    GPU_RUNTIME,
    NAMES,
    Package,
    explain,
    installed,
)
from ernie_accel.backends.static_graph import probe
from ernie_accel.errors import BackendUnavailableError

__all__ = ["Interpreter", "environment", "find"]

OLDEST, NEWEST = (3, 8), (3, 10)
"""Pythons for which there are packages of FastDeploy 1.0.7 (and that this library can talk to)."""

PROBE_SECONDS = 60
WHEELS = "https://www.paddlepaddle.org.cn/whl/fastdeploy.html"
PACKAGES = f"{CPU_RUNTIME}==1.0.7 'numpy<2'"
GPU_PACKAGES = f"{GPU_RUNTIME}==1.0.7 'numpy<2' -f {WHEELS}"
VARIABLE = "ERNIE_ACCEL_FASTDEPLOY_PYTHON"


@dataclass(frozen=True)
class Interpreter:
    """One Python and what it has, as ``probe.describe`` found it."""

    path: str
    python: tuple[int, int]
    packages: tuple[Package, ...]
    numpy: str | None
    build: Mapping[str, Any]

    @property
    def is_own(self) -> bool:
        """Whether it is the one that runs this library."""
        return self.path == sys.executable

    def availability(self, gpu: bool) -> Availability:
        """Say whether it can run FastDeploy 1.x; ``gpu``: with TensorRT."""
        reason = self._lacks(gpu)
        if reason:
            return Availability(False, reason, self._next_step(gpu))
        place = "" if self.is_own else f" in {self.path}"
        return Availability(True, f"{self.packages[0]}{place}, in a process of its own.")

    def _lacks(self, gpu: bool) -> str:
        """Return what is missing, one sentence; "" if nothing is."""
        wrong = explain(self.packages, "runtime")
        if wrong:
            version = ".".join(map(str, self.python))
            here = f" (looked in {self.path}, Python {version})"
            return wrong[:-1] + here + "."
        if self.numpy is None or int(self.numpy.partition(".")[0]) >= 2:
            return f"FastDeploy 1.x needs a NumPy before 2, and {self.path} has {self.numpy or 'none'}."
        if gpu and (self.build.get("with_gpu"), self.build.get("enable_trt_backend")) != ("ON", "ON"):
            return f"{self.packages[0]} in {self.path} was built without TensorRT."
        return ""

    def _next_step(self, gpu: bool) -> str:
        packages = GPU_PACKAGES if gpu else PACKAGES
        foreign = [package.name for package in self.packages if package.kind != "runtime" or gpu]
        remove = f"{_pip(self.path)} uninstall -y {' '.join(foreign)} && " if foreign else ""
        if OLDEST <= self.python <= NEWEST and (self.numpy is None or not self.is_own or self._numpy_fits()):
            return f"Run: {remove}{_pip(self.path)} install {packages}"
        return (
            "FastDeploy 1.0.7 exists up to Python 3.10; give it an environment of its own: "
            f"python3.10 -m venv fastdeploy && fastdeploy/bin/pip install {packages}; then set "
            f"{VARIABLE}=$PWD/fastdeploy/bin/python or pass "
            f"backend_options={'TensorRTOptions' if gpu else 'FastDeployRuntimeOptions'}(python=...)."
        )

    def _numpy_fits(self) -> bool:
        return self.numpy is not None and int(self.numpy.partition(".")[0]) < 2


def find(python: str | os.PathLike[str] | None) -> Interpreter:
    """Look at an interpreter: the one named, else that of the environment variable, else our own.

    Raises BackendUnavailableError if it cannot be asked.
    """
    path = os.fspath(python) if python is not None else env.fastdeploy_python()
    if path is None:
        return _interpreter(sys.executable, probe.describe([*NAMES, "numpy"]))
    path = _located(path)
    command = [path, str(Path(probe.__file__)), *NAMES, "numpy"]
    try:
        result = subprocess.run(
            command,
            env=environment(path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailableError(
            f"the Python for FastDeploy, {path}, cannot be started: {error}"
        ) from error
    try:
        return _interpreter(path, json.loads(result.stdout))
    except (ValueError, KeyError) as error:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise BackendUnavailableError(
            f"the Python for FastDeploy, {path}, is no Python of 3.8 or newer: {last}"
        ) from error


def _located(path: str) -> str:
    """Return where a program is: a bare name is looked for as a shell does, anything else is a path."""
    on_path = shutil.which(path) if os.path.basename(path) == path else None
    return os.path.abspath(on_path or os.path.expanduser(path))


def environment(path: str) -> dict[str, str]:
    """Return environment variables for an interpreter: ours; if it is another, without those that mean our Python."""
    return env.inherited({}, interpreter=path)


def _interpreter(path: str, found: Mapping[str, Any]) -> Interpreter:
    versions: dict[str, str] = found["packages"]
    return Interpreter(
        path=path,
        python=(found["python"][0], found["python"][1]),
        packages=installed(versions.get),
        numpy=versions.get("numpy"),
        build=found["build"],
    )


def _pip(path: str) -> str:
    return "pip" if path == sys.executable else f"{path} -m pip"
