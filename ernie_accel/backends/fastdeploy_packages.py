"""Tells apart the packages that are all imported as ``fastdeploy``, by their metadata and without importing any.

Their kinds:

- ``runtime``: FastDeploy 1.x, which runs static graphs (``Runtime``, ``RuntimeOption``).
- ``engine``: FastDeploy 2.x, which serves language models (``LLM``).
- ``stub``: ``fastdeploy-gpu-python`` 0.1.0, which the public index has instead of the GPU build: it only raises.
- ``unrelated``: ``fastdeploy``, somebody else's project under the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

__all__ = ["CPU_RUNTIME", "ENGINES", "GPU_RUNTIME", "NAMES", "Kind", "Package", "explain", "installed"]

Kind = Literal["runtime", "engine", "stub", "unrelated"]

CPU_RUNTIME = "fastdeploy-python"
GPU_RUNTIME = "fastdeploy-gpu-python"
ENGINES = tuple(
    f"fastdeploy-{device}"
    for device in ("gpu", "xpu", "iluvatar-gpu", "gcu", "dcu", "metax-gpu", "intel-hpu", "npu", "cpu")
)
UNRELATED = "fastdeploy"
STUB_VERSION = "0.1.0"

NAMES = (CPU_RUNTIME, GPU_RUNTIME, *ENGINES, UNRELATED)
"""Every distribution that installs a module ``fastdeploy``."""


@dataclass(frozen=True)
class Package:
    """One installed distribution."""

    name: str
    version: str

    @property
    def kind(self) -> Kind:
        """What it really is."""
        if self.name == UNRELATED:
            return "unrelated"
        if self.name in ENGINES:
            return "engine"
        return "stub" if self.name == GPU_RUNTIME and self.version == STUB_VERSION else "runtime"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed(version_of: Callable[[str], str | None] | None = None) -> tuple[Package, ...]:
    """Return the distributions that install a module ``fastdeploy``; more than one means that they damage each other.

    Args:
        version_of: Gives the version of a distribution, None where it is absent; by default of this interpreter.
    """
    found = ((name, (version_of or _version)(name)) for name in NAMES)
    return tuple(Package(name, number) for name, number in found if number is not None)


def explain(packages: tuple[Package, ...], wanted: Kind) -> str:
    """Say in one sentence why none of these packages, or this mixture, will do; "" if there is just what is wanted."""
    if len(packages) > 1:
        return (
            f"{' and '.join(map(str, packages))} are installed together and overwrite each other's files, "
            "since all of them install the module fastdeploy."
        )
    if not packages:
        return "FastDeploy is not installed."
    package = packages[0]
    return "" if package.kind == wanted else f"{package} is installed, which is {_WHAT[package.kind]}."


_WHAT: dict[Kind, str] = {
    "runtime": "FastDeploy 1.x: it runs static graphs and has no LLM engine",
    "engine": "FastDeploy 2.x: an LLM engine without the Runtime of 1.x",
    "stub": "a stub that the public index has instead of the GPU build: importing it only raises an error",
    "unrelated": "an unrelated project that shares the name",
}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
