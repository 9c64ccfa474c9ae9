"""The import contracts of pyproject.toml hold, and each would notice when it did not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VIOLATIONS = {
    "upward": ("types.py", "import ernie_accel.engine", "A layer imports only from layers below it"),
    "unlisted": ("stray.py", "", "A layer imports only from layers below it"),
    "sideways": ("backends/reference.py", "import ernie_accel.backends.mock", "Backends know the contract"),
    "by import": ("engine/__init__.py", "import ernie_accel.backends.native", "found by name"),
    "judge": ("engine/__init__.py", "import torch", "Peers and judges stay outside"),
    "grammar engine": ("engine/writer.py", "import llguidance", "known to structured output only"),
    "onnx": ("engine/__init__.py", "import onnx", "ONNX is known to its writer"),
    "adapter": ("engine/__init__.py", "import jinja2", "A third-party library is known to its adapter only"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "ernie_accel", tmp_path / "ernie_accel", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter", reason="needs the extra 'dev'")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    # -S: an editable install would bring the real tree.
    command = [sys.executable, "-S", "-c", program, "--no-cache", "--no-logo"]
    path = os.pathsep.join([str(tree), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120)


def test_layers_hold(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("file", "code", "contract"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violation_is_noticed(tree: Path, file: str, code: str, contract: str) -> None:
    with (tree / "ernie_accel" / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{code}\n")
    result = lint(tree)
    assert result.returncode == 1
    broken = [line for line in result.stdout.splitlines() if " BROKEN" in line]
    assert any(contract in line for line in broken), result.stdout
