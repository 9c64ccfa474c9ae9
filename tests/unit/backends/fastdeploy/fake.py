"""A Python that has FastDeploy 1.0.7, or so it seems: what it runs is in ``packages``."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.static_graph.fastdeploy_options import FastDeployRuntimeOptions, TensorRTOptions
from ernie_accel.backends.static_graph.fastdeploy_runtime import (
    FastDeployBackend,
    FastDeployOpenVinoBackend,
    FastDeployOrtBackend,
)
from ernie_accel.backends.static_graph.runner import StaticGraphRunner
from ernie_accel.backends.static_graph.tensorrt import TensorRTBackend
from ernie_accel.testing import synthetic
from ernie_accel.testing.tiny import tiny_config

PACKAGES = Path(__file__).with_name("packages")


class NoGraph:
    """Writes no graph: the fake reads none."""

    def _graph(self, folder: Path, *rest: Any) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(b"graph")
        return path


class Ort(NoGraph, FastDeployOrtBackend):
    """The backend on the fake."""


class OpenVino(NoGraph, FastDeployOpenVinoBackend):
    """The backend on the fake."""


class TensorRT(NoGraph, TensorRTBackend):
    """The backend on the fake."""


@dataclass
class Fake:
    """Opens runners on the fake, and knows what it was told."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    config: ModelConfig = field(default_factory=tiny_config)
    runners: list[StaticGraphRunner] = field(default_factory=list)

    @property
    def python(self) -> str:
        """A program that is Python with the fake."""
        return str(self.folder / "python")

    def install(self, packages: Path = PACKAGES) -> None:
        """Have ``python`` find these packages."""
        program = (
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(packages))} exec {shlex.quote(sys.executable)} "$@"\n'
        )
        Path(self.python).write_text(program, encoding="utf-8")
        Path(self.python).chmod(0o755)

    def install_build(self, switch: str) -> None:
        """Have ``python`` find a build with TensorRT switched "ON" or "OFF"."""
        target = self.folder / "packages"
        shutil.copytree(PACKAGES, target)
        code = target / "fastdeploy/code_version.py"
        code.write_text(code.read_text().replace('"OFF"', f'"{switch}"'))
        self.install(target)

    def behave(self, fault: str | None = None, **settings: Any) -> None:
        """Say what the next child will do."""
        sizes = {
            "vocab": self.config.vocab_size,
            "hidden": self.config.hidden_size,
            "layers": self.config.num_hidden_layers,
        }
        self.monkeypatch.setenv("FAKE_FASTDEPLOY", json.dumps({**sizes, "fault": fault, **settings}))
        self.monkeypatch.setenv("FAKE_FASTDEPLOY_LOG", str(self.folder / "log"))

    def open(self, backend: FastDeployBackend | None = None, **options: Any) -> StaticGraphRunner:
        """Open a runner of a tiny model; ``options`` are those of LoadOptions and of the backend."""
        backend = backend or Ort()
        own = {name: options.pop(name) for name in list(options) if hasattr(TensorRTOptions(), name)}
        kind = TensorRTOptions if isinstance(backend, TensorRTBackend) else FastDeployRuntimeOptions
        settings = kind(**{"python": self.python, "load_timeout": 60.0, "step_timeout": 60.0, **own})
        with synthetic(self.config) as checkpoint:
            runner = backend.open(checkpoint, LoadOptions(backend_options=settings, **options))
        self.runners.append(runner)
        return runner

    def told(self) -> list[list[Any]]:
        """What the fake wrote down: name and values of each call."""
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def told_of(self, name: str) -> list[list[Any]]:
        """The values of the calls of one name."""
        return [values for found, *values in self.told() if found == name]
