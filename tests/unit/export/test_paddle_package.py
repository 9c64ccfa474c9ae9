"""Which Paddle is installed, and what importing it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_accel.errors import BackendError, MissingExtraError
from ernie_accel.export import paddle_package
from ernie_accel.export.paddle_package import import_paddle, installed_version, version_problem

POET = Path(__file__).parents[3] / "examples/poet/model"


@pytest.mark.parametrize("version", ["3.3.0", "3.3.1", "3.10.2", "3.4.0rc0"])
def test_versions_that_are_known_to_work_have_no_problem(version: str) -> None:
    assert version_problem(version) is None


@pytest.mark.parametrize(
    ("version", "says"), [("3.2.2", "too old"), ("2.6.2", "too old"), ("4.0.0", "newer than")]
)
def test_other_versions_have_one_that_names_them(version: str, says: str) -> None:
    problem = version_problem(version)
    assert problem is not None
    assert version in problem
    assert says in problem


def test_a_version_that_cannot_be_used_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle_package, "installed_version", lambda: "2.6.2")
    monkeypatch.setitem(sys.modules, "paddle", None)
    with pytest.raises(BackendError, match=r"2\.6\.2 is too old"):
        import_paddle()


def test_without_paddle_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle_package, "installed_version", lambda: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ernie-accel\[paddle\]'"):
        import_paddle()


SLOW = """
import sys
print("importing", flush=True)
try:
    sys.stdin.readline()
except BaseException as error:  # as the loader of a C++ module does
    raise ImportError("initialization failed") from error
complete = True
"""

INTERRUPTED = """
import signal
from ernie_accel.export import paddle_package
signal.signal(signal.SIGINT, signal.default_int_handler)  # one that was started in the background ignores it
paddle_package.installed_version = lambda: "3.3.1"
try:
    paddle_package.import_paddle()
except KeyboardInterrupt:
    print("interrupted,", "whole" if paddle_package.import_paddle().complete else "in part")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_during_the_import_is_one_and_leaves_it_whole(tmp_path: Path) -> None:
    (tmp_path / "paddle/inference").mkdir(parents=True)
    (tmp_path / "paddle/__init__.py").write_text(SLOW)
    (tmp_path / "paddle/inference/__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "importing\n"
        program.send_signal(signal.SIGINT)
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "interrupted, whole\n"


CHECK = r"""
import faulthandler, logging, os, signal, sys, warnings

def state():
    masks = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
    caught = [int(masks[name], 16) & 0xFFFFFFFF for name in ("SigCgt", "SigIgn")]  # above are those of threads
    root = logging.getLogger()
    return dict(os.environ), caught, list(root.handlers), root.level, list(warnings.filters), sys.excepthook

import ernie_accel as ea
terminated = []
signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
faulthandler.enable()
with ea.Model.load(sys.argv[1], backend="reference") as model:  # what any backend brings
    model.generate("春", max_tokens=2)
before = state()
with ea.Model.load(sys.argv[1], backend="paddle", precision=sys.argv[2]) as model:
    model.generate("春", max_tokens=2)
    import paddle
    assert paddle.in_dynamic_mode()
    after = state()
    os.kill(os.getpid(), signal.SIGTERM)
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
assert terminated == [signal.SIGTERM]
assert faulthandler.is_enabled()
print("unchanged")
"""


@pytest.mark.skipif(installed_version() is None, reason="needs paddlepaddle")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_process_that_loads_a_model_is_left_as_it_was(precision: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(POET), precision], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "unchanged\n"
    assert done.stderr == ""
