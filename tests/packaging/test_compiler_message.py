"""Whoever lacks a compiler reads one clear sentence, before anything is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOO_OLD = "#!/bin/sh\necho 'g++ (GNU) 10.2.0'\nexit 1\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the scripts need of a clone, without an environment."""
    target = tmp_path / "clone"
    for name in ("scripts", "csrc", "benchmarks"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("models", "__pycache__"))
    for name in ("pyproject.toml", "CMakeLists.txt"):
        shutil.copy(ROOT / name, target)
    model = target / "examples/poet/model/model.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    return target


def run(clone: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``script`` may end with arguments."""
    name, *arguments = script.split()
    command = ["bash", str(clone / "scripts" / name), *arguments]
    # Without a proxy that answers, an attempt to download would fail at once and say something else.
    nowhere = {"PIP_NO_INDEX": "1", **environment}
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("CXX", "PYTHON", "VENV", "CI")
    }
    return subprocess.run(command, env={**inherited, **nowhere}, capture_output=True, text=True, timeout=120)


def path_without_compilers(tmp_path: Path) -> str:
    """A folder with links to every program on PATH that is no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    compilers = {"c++", "g++", "clang++"}
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else ():
            link = folder / program.name
            if program.name not in compilers and not os.path.lexists(link):
                link.symlink_to(program)
    return str(folder)


def assert_one_sentence(run: subprocess.CompletedProcess[str], said: str) -> None:
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ")
    assert said in run.stderr
    assert "C++20" in run.stderr
    assert "apt install g++" in run.stderr


@pytest.mark.parametrize("script", ["demo", "test", "bench import", "bench decode"])
def test_no_compiler(clone: Path, tmp_path: Path, script: str) -> None:
    result = run(clone, script, PATH=path_without_compilers(tmp_path))
    assert_one_sentence(result, "none is on PATH")
    assert not (clone / ".venv").exists()


def test_named_compiler_is_absent(clone: Path) -> None:
    assert_one_sentence(run(clone, "demo", CXX="/no/such/g++"), "CXX=/no/such/g++ cannot be run")


def test_compiler_is_too_old(clone: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "old-g++"
    compiler.write_text(TOO_OLD, encoding="utf-8")
    compiler.chmod(0o755)
    assert_one_sentence(run(clone, "demo", CXX=str(compiler)), "old-g++ is not one")


def test_python_is_too_old(clone: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    result = run(clone, "demo", PYTHON=str(python))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Python 3.10 or newer is needed" in result.stderr


def test_model_is_missing(clone: Path) -> None:
    (clone / "examples/poet/model/model.safetensors").unlink()
    result = run(clone, "demo")
    assert result.returncode == 1
    assert "git checkout -- examples/poet/model" in result.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_cmake_says_it_too(clone: Path, tmp_path: Path) -> None:
    """For those who call pip themselves."""
    command = ["cmake", "-S", str(clone), "-B", str(tmp_path / "build")]
    environment = {**os.environ, "CXX": "/no/such/g++"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    said = " ".join(result.stderr.split())
    assert (
        "ernie_accel is built with a C++20 compiler (g++ 11, clang++ 14, or newer) and none was found" in said
    )
