"""A forked child has the model but not the thread that computes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

if not hasattr(os, "fork"):
    pytest.skip("there is no fork here", allow_module_level=True)

PROGRAM = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads, which is the subject
import ernie_accel as ea
from ernie_accel.testing import synthetic, tiny_config

model = ea.Model.load(synthetic(tiny_config()), backend="mock")
expected = model.generate([1, 2, 3], max_tokens=4).token_ids

def child(check):
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def is_refused():
    stream.cancel()  # has nobody to wait for
    for call in (lambda: model.generate([1, 2, 3], max_tokens=4), lambda: next(stream), stream.result, model.metrics):
        try:
            call()
        except ea.BackendError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError
    model.close()

stream = model.stream([1, 2], max_tokens=10)
child(is_refused)
assert len(stream.result().token_ids) == 10
assert model.generate([1, 2, 3], max_tokens=4).token_ids == expected
"""


def test_a_child_is_told_and_never_hangs() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
