from __future__ import annotations

import pytest

from ernie_accel.backends.fastdeploy_packages import Kind, Package, explain, installed


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("fastdeploy-python", "1.0.7", "runtime"),
        ("fastdeploy-gpu-python", "1.0.7", "runtime"),
        ("fastdeploy-gpu-python", "0.1.0", "stub"),
        ("fastdeploy-gpu", "2.5.0", "engine"),
        ("fastdeploy-xpu", "2.3.0", "engine"),
        ("fastdeploy", "3.0.30", "unrelated"),
    ],
)
def test_kinds(name: str, version: str, kind: Kind) -> None:
    packages = installed({name: version}.get)
    assert packages == (Package(name, version),)
    assert packages[0].kind == kind
    assert explain(packages, kind) == ""


def test_none() -> None:
    assert installed(lambda name: None) == ()
    assert explain((), "engine") == "FastDeploy is not installed."


@pytest.mark.parametrize("name", ["fastdeploy", "fastdeploy-gpu"])
def test_another_kind_is_named_and_explained(name: str) -> None:
    sentence = explain(installed({name: "2.5.0"}.get), "runtime")
    assert f"{name} 2.5.0 is installed" in sentence
    assert ("unrelated" in sentence) is (name == "fastdeploy")


def test_the_stub_is_not_taken_for_the_gpu_build() -> None:
    sentence = explain(installed({"fastdeploy-gpu-python": "0.1.0"}.get), "runtime")
    assert "stub" in sentence


def test_two_at_once_are_a_damage_of_their_own() -> None:
    both = installed({"fastdeploy": "3.0.30", "fastdeploy-python": "1.0.7"}.get)
    sentence = explain(both, "runtime")
    assert "fastdeploy-python 1.0.7 and fastdeploy 3.0.30" in sentence
    assert "overwrite" in sentence


def test_this_interpreter_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_accel.backends.fastdeploy_packages.NAMES", ("numpy", "no-such-package"))
    assert [package.name for package in installed()] == ["numpy"]
