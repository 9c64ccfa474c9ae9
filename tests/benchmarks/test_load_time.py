from __future__ import annotations

from pathlib import Path

import pytest

import ernie_accel as ea
from benchmarks.end_to_end.formats.our_directory import fingerprint
from benchmarks.load_time import run
from ernie_accel.testing import synthetic, tiny_config

native = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")


@native
def test_a_quantised_directory_is_loaded_to_its_first_token(tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    ea.quantize(
        synthetic(tiny_config()),
        directory,
        precision="int8",
        calibration=[[5, 6, 7, 8] * 8] * 4,
        progress=False,
    )
    values = run(directory, 1)
    assert 0 < values["load"] < values["first token"]
    assert values["peak"] > 0


def test_a_fingerprint_changes_with_a_source_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    before = fingerprint([tmp_path])
    (tmp_path / "a.pyc").write_text("1", encoding="utf-8")
    assert fingerprint([tmp_path]) == before
    (tmp_path / "b.h").write_text("1", encoding="utf-8")
    assert fingerprint([tmp_path]) != before
    assert fingerprint([tmp_path / "a.py"]) != fingerprint([tmp_path / "b.h"])
