from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from ernie_accel.backends.registry import available
from ernie_accel.bench import machine


def test_machine_is_described() -> None:
    description = machine.describe()
    assert set(description) == {"processor", "cores", "memory", "system", "python"}
    assert all(description.values())


def test_kernel_files_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "info"
    path.write_text("model\t: 17\nmodel name\t: Some: CPU\n", encoding="utf-8")
    assert machine._field(path, "model name") == "Some: CPU"
    assert machine._field(path, "flags") == ""
    assert machine._field(tmp_path / "absent", "flags") == ""


def test_missing_distributions_are_left_out() -> None:
    assert machine.versions(["numpy", "no-such-distribution"]) == {"numpy": metadata.version("numpy")}


def test_busy_is_the_share_that_was_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stat"
    path.write_text("cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 1\n", encoding="utf-8")
    later = "cpu  40 0 10 130 20 0 0 0 35 0\ncpu0 1\n"
    monkeypatch.setattr("time.sleep", lambda seconds: path.write_text(later, encoding="utf-8"))
    assert machine.busy(path=path) == pytest.approx(0.3)
    assert machine.busy(path=tmp_path / "absent") is None


@pytest.mark.skipif(not available()["native"].ok, reason="the native backend is not available")
def test_read_bandwidth_is_bytes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE_BYTES", 1_000_001)
    assert 1e6 < machine.read_bandwidth(2) < 1e14


@pytest.mark.skipif(not available()["native"].ok, reason="the native backend is not available")
@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_read_bandwidth_refuses_nothing_to_do(arguments: tuple[int, int, int]) -> None:
    from ernie_accel import _native

    with pytest.raises(ValueError, match="at least 1"):
        _native.read_bandwidth(*arguments)


@pytest.mark.skipif(not available()["native"].ok, reason="the native backend is not available")
def test_dot_product_peak_is_operations_a_second_or_0() -> None:
    peak = machine.dot_product_peak(2)
    assert peak == 0 or 1e9 < peak < 1e16
