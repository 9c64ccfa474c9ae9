"""A package of somebody else, its code that of docs/guides/write-a-backend.md, built, installed and used by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/write-a-backend.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

PROGRAM = """
import sys
import ernie_accel as ea
from ernie_accel.backends.registry import get
from ernie_accel.testing import tiny_config
from ernie_accel.testing.conformance import EngineSubject, Subject, run_conformance, run_engine_conformance

table = ea.backends()
assert table["recompute"].ok and table["counting"].ok
assert not table["broken"].ok and "Missing" in table["broken"].reason, table["broken"]
assert table["native"].reason

report = run_conformance(Subject(backend=get("recompute")))
assert not report.failed and len(report.passed) > 30, report
opened = lambda: get("counting").open_engine(None, None, None)
report = run_engine_conformance(EngineSubject(open=opened))
assert not report.failed, report

source = ea.testing.synthetic(tiny_config())
with ea.Model.load(source, backend="recompute") as model, ea.Model.load(source, backend="reference") as judge:
    mine, theirs = (m.generate([1, 2, 3], max_tokens=8, temperature=0, ignore_eos=True) for m in (model, judge))
    assert mine.token_ids == theirs.token_ids
    assert model.info.backend == "recompute"
with ea.Model.load(source, backend="counting") as model:
    done = model.generate([5, 6], max_tokens=3, n=2)
    assert (done.token_ids, len(done.alternatives)) == ((7, 8, 9), 1)
    assert "".join(chunk.text for chunk in model.stream([6], max_tokens=2)) == "7 8 "
    try:
        model.generate([1], logprobs=1)
    except ea.UnsupportedError as error:
        assert "native" in str(error)
with ea.Model.load(backend="counting") as model:
    assert model.generate([5], max_tokens=1).token_ids == (6,)
print("ok")
"""


def code() -> str:
    """The definitions of the guide; blocks that run a suite are left out."""
    blocks = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    return "\n".join(block for block in blocks if "report = " not in block)


@pytest.mark.slow
def test_a_package_of_somebody_else(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "my_backends.py").write_text(code(), encoding="utf-8")
    (package / "pyproject.toml").write_bytes(
        (Path(__file__).parent / "third_party/pyproject.toml").read_bytes()
    )
    place = tmp_path / "installed"
    install = ["install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(place)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(package)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(place)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert run.stdout == "ok\n", run.stderr
