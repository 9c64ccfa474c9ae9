"""Strings that name devices, and what an exchange between them costs."""

from __future__ import annotations

import pytest

from ernie_accel.errors import ArgumentError
from ernie_accel.planner.devices import CATALOGUE, Device, Devices, _listed, find_devices, machine
from ernie_accel.planner.links import LINKS


@pytest.mark.parametrize(
    ("spec", "name", "count"),
    [
        ("8xA100-80G", "A100-80G", 8),
        ("8 x a100", "A100-80G", 8),
        ("4×H800", "H800-80G", 4),
        ("H100", "H100-80G", 1),
        ("H20", "H20-96G", 1),
        ("H20-141GB", "H20-141G", 1),
        ("NVIDIA L20", "L20-48G", 1),
        ("2xA100-40G", "A100-40G", 2),
        ("NVIDIA A100-SXM4-80GB", "A100-80G", 1),
        ("A100-PCIE-40GB", "A100-40G", 1),
        ("NVIDIA H100 80GB HBM3", "H100-80G", 1),
        ("8xH100-SXM", "H100-80G", 8),
        ("Tesla V100-SXM2-32GB", "V100-32G", 1),
        ("NVIDIA GeForce RTX 4090", "RTX4090-24G", 1),
    ],
)
def test_a_string_names_devices(spec: str, name: str, count: int) -> None:
    found = find_devices(spec)
    assert (found.device.name, found.count) == (name, count)
    assert found.device is CATALOGUE[name]


@pytest.mark.parametrize("spec", ["", "8x", "0xA100", "5000xA100", "-3xH100", "100", "cpu-0G", 7])
def test_a_string_that_names_none_is_refused(spec: object) -> None:
    with pytest.raises(ArgumentError, match="devices"):
        find_devices(spec)  # type: ignore[arg-type]


def test_a_misspelt_device_gets_a_hint() -> None:
    with pytest.raises(ArgumentError, match="did you mean 'A100-80G'"):
        find_devices("A100-81G")


def test_the_processors_of_this_machine() -> None:
    here = find_devices("cpu", threads=3)
    assert here.device.kind == "cpu"
    assert here.device.memory > 0
    assert here.device.bandwidth == 3 * machine(1).bandwidth
    assert not here.device.measured
    other = find_devices("cpu-64G").device
    assert (other.name, other.memory) == ("cpu-64G", 64 << 30)


def test_a_device_of_ones_own() -> None:
    mine = Device(name="mine", kind="gpu", memory=1 << 30, bandwidth=1e9, tera16=1)
    assert find_devices(mine) == Devices(mine)
    assert str(Devices(mine, 3)) == "3xmine"


def test_what_the_driver_lists_is_found_in_the_catalogue() -> None:
    found = _listed(["NVIDIA A100-SXM4-80GB, 81920", "NVIDIA A100-SXM4-80GB, 81920"])
    assert found is not None
    assert str(found) == "2xA100-80G"
    small = _listed(["NVIDIA A100-PCIE-40GB, 40960"])
    assert small is not None
    assert small.device.bandwidth == CATALOGUE["A100-40G"].bandwidth
    gaming = _listed(["NVIDIA GeForce RTX 4090, 24564"])
    assert gaming is not None
    assert gaming.device.name == "RTX4090-24G"
    unknown = _listed(["NVIDIA Future X1, 12345"])
    assert unknown is not None
    assert (unknown.device.name, unknown.device.memory) == ("NVIDIA Future X1", 12345 << 20)
    assert _listed(["no devices were found"]) is None


def test_the_cost_of_an_all_reduce() -> None:
    link = LINKS["nvlink4"]
    assert link.all_reduce(1 << 20, 1) == 0
    few, more = link.all_reduce(8192, 2), link.all_reduce(8192, 8)
    assert few == pytest.approx(6e-6, rel=0.05)  # what is reported of a pair
    assert few < more
    gigabyte = link.all_reduce(1e9, 8) - link.all_reduce(0, 8)
    assert gigabyte == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)
    assert (
        45e-6 < LINKS["pcie4"].all_reduce(16384, 8) < 57e-6
    )  # what is reported of eight A800 without NVLink
