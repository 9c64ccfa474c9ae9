"""What FastDeploy an interpreter has, found without importing it. Also a program for other interpreters: Python 3.8 on.

``python probe.py NAME...`` prints as JSON what ``describe`` returns.
"""

from __future__ import annotations

import ast
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def describe(names: Any) -> Any:
    """Return the Python version, versions of those distributions that are there, and FastDeploy's build settings."""
    return {
        "python": list(sys.version_info[:2]),
        "packages": {name: number for name in names for number in [_version(name)] if number is not None},
        "build": _build(),
    }


def _version(name: str) -> Any:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _build() -> Any:
    """Settings of the build (with_gpu, enable_trt_backend) from a file of FastDeploy 1.x that only assigns them."""
    try:
        spec = find_spec("fastdeploy")
    except (ImportError, ValueError):
        return {}
    if spec is None or spec.origin is None:
        return {}
    try:
        code = Path(spec.origin).with_name("code_version.py").read_text(encoding="utf-8")
        statements = ast.parse(code).body
    except (OSError, SyntaxError, ValueError):
        return {}
    return {
        statement.targets[0].id: statement.value.value
        for statement in statements
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
    }


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1:])))
