from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy_packages import Package
from ernie_accel.backends.static_graph import child, interpreter, probe
from ernie_accel.backends.static_graph.fastdeploy_options import FastDeployRuntimeOptions
from ernie_accel.backends.static_graph.interpreter import Interpreter
from ernie_accel.errors import ArgumentError, BackendUnavailableError
from tests.unit.backends.fastdeploy.fake import PACKAGES, Fake, Ort, TensorRT


def python(packages: dict[str, str], **values: Any) -> Interpreter:
    given = {"path": "/x/bin/python", "python": (3, 10), "numpy": "1.26.4", "build": {}, **values}
    return Interpreter(packages=tuple(Package(*item) for item in packages.items()), **given)


def test_another_python_is_asked(fake: Fake) -> None:
    found = interpreter.find(fake.python)
    assert found.packages == (Package("fastdeploy-python", "1.0.7"),)
    assert found.numpy == "1.26.4"
    assert found.python == sys.version_info[:2]
    assert found.build["with_gpu"] == "OFF"
    answer = found.availability(gpu=False)
    assert answer.ok
    assert fake.python in answer.reason


def test_the_variable_names_one_and_the_option_wins(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_FASTDEPLOY_PYTHON", fake.python)
    assert interpreter.find(None).path == fake.python
    assert interpreter.find(sys.executable).path == sys.executable
    monkeypatch.delenv("ERNIE_ACCEL_FASTDEPLOY_PYTHON")
    assert interpreter.find(None).is_own


def test_a_bare_name_is_looked_for_as_a_shell_does(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = Path(fake.python)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert interpreter.find(program.name).path == fake.python
    monkeypatch.chdir(program.parent)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert interpreter.find(f"./{program.name}").path == fake.python


@pytest.mark.parametrize("content", [None, "#!/bin/sh\necho hello\n", "#!/bin/sh\necho no >&2; exit 1\n"])
def test_what_is_no_python_says_so(fake: Fake, content: str | None) -> None:
    program = Path(fake.python)
    program.unlink()
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    with pytest.raises(BackendUnavailableError, match=r"the Python for FastDeploy, .*python, "):
        interpreter.find(program)
    answer = Ort().available_for(LoadOptions(backend_options=FastDeployRuntimeOptions(python=program)))
    assert not answer.ok


def test_nothing_installed_and_a_python_that_could() -> None:
    answer = python({}).availability(gpu=False)
    assert not answer.ok
    assert "not installed" in answer.reason
    assert answer.next_step == "Run: /x/bin/python -m pip install fastdeploy-python==1.0.7 'numpy<2'"


def test_a_python_that_is_too_new_gets_an_environment_beside() -> None:
    answer = python({}, python=(3, 12), numpy="2.1.0").availability(gpu=False)
    assert "python3.10 -m venv" in answer.next_step
    assert "ERNIE_ACCEL_FASTDEPLOY_PYTHON" in answer.next_step


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        ({"fastdeploy": "3.0.30"}, "unrelated project"),
        ({"fastdeploy-gpu-python": "0.1.0"}, "a stub"),
        ({"fastdeploy-gpu": "2.5.0"}, "without the Runtime"),
        ({"fastdeploy-python": "1.0.7", "fastdeploy": "3.0.30"}, "overwrite each other"),
    ],
)
def test_packages_that_are_not_it_are_explained_and_removed(packages: dict[str, str], words: str) -> None:
    answer = python(packages).availability(gpu=False)
    assert not answer.ok
    assert words in answer.reason
    assert "uninstall -y fastdeploy" in answer.next_step


def test_numpy_2_is_not_for_it() -> None:
    answer = python({"fastdeploy-python": "1.0.7"}, numpy="2.0.1").availability(gpu=False)
    assert "NumPy before 2" in answer.reason
    assert not answer.ok


def test_the_cpu_build_has_no_tensorrt(fake: Fake) -> None:
    options = LoadOptions(backend_options=None)
    found = interpreter.find(fake.python)
    answer = found.availability(gpu=True)
    assert not answer.ok
    assert "built without TensorRT" in answer.reason
    assert "fastdeploy-gpu-python==1.0.7" in answer.next_step
    assert not TensorRT().available_for(options).ok


def test_a_gpu_build_has(fake: Fake) -> None:
    fake.install_build("ON")
    assert interpreter.find(fake.python).availability(gpu=True).ok


def test_opening_without_it_names_the_package_that_is_there(fake: Fake) -> None:
    foreign = fake.folder / "foreign"
    shutil.copytree(PACKAGES / "numpy-1.26.4.dist-info", foreign / "fastdeploy-3.0.30.dist-info")
    metadata = foreign / "fastdeploy-3.0.30.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: fastdeploy\nVersion: 3.0.30\n")
    fake.install(foreign)
    with pytest.raises(BackendUnavailableError, match=r"'fastdeploy-ort': .*fastdeploy 3\.0\.30 "):
        fake.open()


@pytest.mark.parametrize("values", [{"load_timeout": 0}, {"step_timeout": float("inf")}, {"python": 3}])
def test_options_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(values))):
        FastDeployRuntimeOptions(**values)


def test_another_backends_options_are_refused(fake: Fake) -> None:
    with pytest.raises(ArgumentError, match="takes FastDeployRuntimeOptions"):
        Ort().available_for(LoadOptions(backend_options=3))


@pytest.mark.parametrize("module", [child, probe])
def test_what_the_other_python_runs_needs_nothing_of_ours_and_no_newer_python(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}
    assert roots <= {"fastdeploy", "numpy"} | set(sys.stdlib_module_names)
