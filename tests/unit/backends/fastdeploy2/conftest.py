"""FastDeploy as its documentation describes it: a module for a child process, a server, and a machine with a GPU."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.fastdeploy import machine
from tests.unit.backends.fastdeploy2.fake_server import FakeServer

HERE = Path(__file__).parent
HOPPER = "0, NVIDIA H100 80GB HBM3, 9.0, 550.54.15, 81559, 81000"


@dataclass
class Installation:
    """A directory that stands for the environment in which FastDeploy is installed."""

    site: Path
    bin: Path
    logs: Path
    scenario: str = ""
    delay: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    temporary: Path = Path()

    def files_left(self) -> list[Path]:
        """What is in the temporary directory, but for the logs of failures."""
        logs = {path for path in self.temporary.glob("*/log") if path.is_dir()}
        kept = {*logs, *(path.parent for path in logs)}
        return sorted({*self.temporary.glob("*"), *self.temporary.glob("*/*")} - kept)

    def install(self, name: str, version: str) -> None:
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def uninstall(self, name: str) -> None:
        for info in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(info)

    def gpus(self, *lines: str) -> None:
        program = self.bin / "nvidia-smi"
        program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
        program.chmod(0o755)

    def own(self, **options: Any) -> ea.FastDeployOptions:
        environment = {
            "PYTHONPATH": str(self.site),
            "FAKE_SCENARIO": self.scenario,
            "FAKE_DELAY": str(self.delay),
        }
        given = {"start_timeout": 60.0, "log_directory": str(self.logs), **self.options, **options}
        return ea.FastDeployOptions(environment=environment, **given)

    def notes(self, kind: str) -> list[dict[str, Any]]:
        path = self.logs / "notes.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for line in lines if (note := json.loads(line))["kind"] == kind]


@pytest.fixture
def fastdeploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """FastDeploy 2.5 beside its Paddle, on a machine with one GPU; nothing of it may be alive at the end."""
    made = Installation(tmp_path / "site", tmp_path / "bin", tmp_path / "logs")
    (made.site / "fastdeploy").mkdir(parents=True)
    made.bin.mkdir()
    shutil.copy(HERE / "fake_llm.py", made.site / "fastdeploy/__init__.py")
    made.install("fastdeploy-gpu", "2.5.0")
    made.install("paddlepaddle-gpu", "3.3.1")
    made.install("xgrammar", "0.1.19")
    made.gpus(HOPPER)
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine, "is_linux_x86", lambda: True)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    made.temporary = temporary
    yield made
    assert left_behind(made.site) == []
    assert made.files_left() == []


@pytest.fixture
def load(fastdeploy: Installation, checkpoint_directory: Path) -> Callable[..., ea.Model]:
    """Load the tiny checkpoint in a process group."""

    def load(own: dict[str, Any] | None = None, **options: Any) -> ea.Model:
        return ea.Model.load(
            checkpoint_directory,
            backend="fastdeploy",
            backend_options=fastdeploy.own(**(own or {})),
            progress=False,
            **options,
        )

    return load


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def remote(server: FakeServer) -> Callable[..., ea.Model]:
    """Load what the fake server has; ``own`` are fields of FastDeployOptions, others arguments of load."""

    def load(source: Path | None = None, own: dict[str, Any] | None = None, **options: Any) -> ea.Model:
        given = {"connect_timeout": 5.0, "read_timeout": 20.0, **(own or {})}
        chosen = ea.FastDeployOptions(endpoint=server.url, **given)
        return ea.Model.load(source, backend="fastdeploy", backend_options=chosen, **options)

    return load


def left_behind(site: Path) -> list[int]:
    """Processes that were started with the fake installation and are still there, after a moment."""
    mark = str(site).encode()
    end = time.monotonic() + 5
    while True:
        found = [pid for pid in processes() if mark in environment(pid)]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


linux = pytest.mark.skipif(sys.platform != "linux", reason="process groups are looked at through /proc")
