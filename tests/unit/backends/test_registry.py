from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends import registry
from ernie_accel.backends.base import Availability, Engine, Footprint, LoadOptions, Runner
from ernie_accel.backends.reference import ReferenceBackend
from ernie_accel.backends.registry import BackendStatus, BackendTable
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.engine.local import LocalEngine
from ernie_accel.errors import ArgumentError, BackendUnavailableError, UnsupportedError
from ernie_accel.testing import synthetic, tiny_config

OURS = {
    "native": "ernie_accel.backends.native.backend:NativeBackend",
    "reference": "ernie_accel.backends.reference:ReferenceBackend",
    "mock": "ernie_accel.backends.mock:MockBackend",
}


class Theirs(ReferenceBackend):
    name = "theirs"
    precisions: tuple[str, ...] = ("fp8",)


class Absent(Theirs):
    def available(self) -> Availability:
        return Availability(False, "There is no such device.", "Buy one.")


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("not today")


class NoBackend:
    name = "theirs"


@dataclass(frozen=True)
class Point:
    """An entry point of a class of this file."""

    name: str
    made: type

    @property
    def value(self) -> str:
        return f"theirs:{self.made.__name__}"

    def load(self) -> type:
        return self.made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Entry points as if these were installed, by name: a class, or a reference to one."""
    points: dict[str, Any] = dict(OURS)

    def entry_points(group: str) -> list[Point | EntryPoint]:
        assert group == "ernie_accel.backends"
        return [
            EntryPoint(name, made, group) if isinstance(made, str) else Point(name, made)
            for name, made in points.items()
        ]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return points


def test_ours_are_found() -> None:
    assert {"mock", "native", "reference"} <= set(registry.names())
    assert registry.get("reference").name == "reference"


def test_an_unknown_name_lists_the_names_and_the_nearest(installed: dict[str, Any]) -> None:
    with pytest.raises(
        ArgumentError, match=r"'refrence': .* mock, native, reference; did you mean 'reference'\?"
    ):
        registry.get("refrence")
    with pytest.raises(ArgumentError, match=r"reference$"):
        registry.get("xyz")


def test_gpu_is_reserved(installed: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailableError, match="reserved"):
        registry.get("gpu")
    assert "gpu" not in [row.name for row in registry.available()]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Broken, "RuntimeError: not today"),
        (NoBackend, "is not a Backend"),
        ("missing_package.module:Thing", "ModuleNotFoundError"),
        ("ernie_accel.errors:Missing", "AttributeError"),
    ],
)
def test_a_broken_entry_point_is_reported_and_harmless(
    installed: dict[str, Any], value: Any, reason: str
) -> None:
    installed["theirs"] = value
    with pytest.raises(BackendUnavailableError, match=reason):
        registry.get("theirs")
    table = registry.available()
    assert not table["theirs"].ok
    assert reason in table["theirs"].reason
    assert table["theirs"].next_step
    assert table["reference"].ok


def test_available_that_raises_is_reported(
    installed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed["theirs"] = Theirs
    monkeypatch.setattr(Theirs, "available", lambda self: 1 / 0)
    assert "division by zero" in registry.available()["theirs"].reason


def test_another_package_cannot_take_our_name(
    installed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        theirs = EntryPoint("reference", "missing_package:Thing", group)
        ours = EntryPoint("reference", OURS["reference"], group)
        return [theirs, ours, theirs]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert isinstance(registry.get("reference"), ReferenceBackend)


def test_choose_by_name_refuses_what_cannot_run(installed: dict[str, Any]) -> None:
    installed["theirs"] = Absent
    with pytest.raises(BackendUnavailableError, match=r"There is no such device\. Buy one\."):
        registry.choose("theirs")
    assert registry.choose("reference").name == "reference"


def test_auto_is_native_and_never_steps_down(installed: dict[str, Any]) -> None:
    installed["native"] = Theirs
    assert registry.choose("auto").name == "theirs"
    installed["native"] = Absent
    with pytest.raises(BackendUnavailableError, match=r"no such device.*reference"):
        registry.choose("auto")


def test_a_precision_that_is_lacking_names_who_has_it(installed: dict[str, Any]) -> None:
    reference = registry.get("reference")
    registry.check_precision(reference, LoadOptions(precision="auto"))
    registry.check_precision(reference, LoadOptions(precision="fp32"))
    with pytest.raises(UnsupportedError, match="no installed backend offers it"):
        registry.check_precision(reference, LoadOptions(precision="fp8"))
    installed["theirs"] = Theirs
    with pytest.raises(UnsupportedError, match="offered by theirs"):
        registry.check_precision(reference, LoadOptions(precision="fp8"))


def test_the_table_prints() -> None:
    table = BackendTable(
        (BackendStatus("a", True, "Fine."), BackendStatus("long", False, "<No>.", "Do that."))
    )
    assert repr(table) == "a     yes  Fine.\nlong  no   <No>. Do that."
    assert "<td>&lt;No&gt;.</td><td>Do that.</td>" in table._repr_html_()
    assert [row.name for row in table] == ["a", "long"]
    assert len(table) == 2
    assert table["long"].next_step == "Do that."
    with pytest.raises(KeyError):
        table["b"]
    assert repr(BackendTable(())) == ""


def test_a_source_folder_that_nobody_installed_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict)
    with pytest.raises(BackendUnavailableError, match="pip install --editable"):
        registry.get("native")
    with pytest.raises(BackendUnavailableError, match="pip install --editable"):
        registry.choose("auto")


class Least:
    """What the contract asks for and nothing more."""

    name = "theirs"

    def available(self) -> Availability:
        return Availability(True, "Runs anywhere.")

    def estimate(self, config: Any, options: LoadOptions) -> Footprint:
        return Footprint(kv_per_token=1, scratch=1, runtime=1)

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> Runner | Engine:
        if options.precision not in ("auto", "fp32"):
            raise UnsupportedError("theirs has fp32")
        return ReferenceBackend().open(checkpoint, LoadOptions())


class OpensAnEngine(Least):
    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> Runner | Engine:
        runner = super().open(checkpoint, options)
        assert isinstance(runner, Runner)
        return LocalEngine(runner)


@pytest.mark.parametrize("made", [Least, OpensAnEngine])
def test_the_least_that_a_backend_is_will_do(installed: dict[str, Any], made: type) -> None:
    installed["theirs"] = made
    with ea.Model.load(synthetic(tiny_config()), backend="theirs") as model:
        assert model.info.precision == "fp32"
        assert model.generate([1, 2], max_tokens=3, ignore_eos=True).usage.completion_tokens == 3
    with pytest.raises(UnsupportedError, match="theirs has fp32"):
        ea.Model.load(synthetic(tiny_config()), backend="theirs", precision="int8")
    assert ea.plan(tiny_config(), devices="cpu", backend="theirs").precision == "fp32"
