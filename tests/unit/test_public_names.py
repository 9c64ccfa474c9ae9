from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ernie_accel as ea
from ernie_accel import display


def test_names_are_listed_sorted_and_exist() -> None:
    assert ea.__all__ == sorted(ea.__all__)
    for name in ea.__all__:
        assert getattr(ea, name) is not None
    assert set(ea.__all__) <= set(dir(ea))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ea.nothing


def test_every_error_is_exported() -> None:
    from ernie_accel import errors

    assert set(errors.__all__) <= set(ea.__all__)


def test_importing_the_package_leaves_its_parts_for_later() -> None:
    program = "import sys, ernie_accel; print([m for m in sys.modules if m.startswith('ernie_accel.')])"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "ernie_accel.model" not in out
    assert "ernie_accel.types" in out


def test_backends_is_a_table_and_the_subpackage() -> None:
    import ernie_accel.backends.base as contract

    table = ea.backends()
    assert table["reference"].ok
    assert table["native"].reason
    assert ea.backends.base is contract
    assert "<table>" in table._repr_html_()


def test_doctor_reports_what_the_library_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERNIE_ACCEL_THREADS", raising=False)
    report = ea.doctor()
    assert report.version == ea.__version__
    assert report.threads >= 1
    assert 0 < report.memory_available <= report.memory_total
    assert {row.name for row in report.backends} >= {"mock", "native", "reference"}
    text = repr(report)
    for word in ("instruction set", "threads", "memory", "backends", "physical cores"):
        assert word in text
    assert report._repr_html_().startswith("<strong>")
    plain = json.loads(json.dumps(report.to_dict()))
    assert {row["name"] for row in plain["backends"]} >= {"mock", "native", "reference"}
    assert [looked["backend"] for looked in plain["preflights"]] == ["fastdeploy"]


def test_doctor_says_who_chose_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_THREADS", "7")
    assert ea.doctor().threads == 7
    assert "Chosen by ERNIE_ACCEL_THREADS" in repr(ea.doctor())
    monkeypatch.setenv("ERNIE_ACCEL_THREADS", "many")
    assert "ERNIE_ACCEL_THREADS='many'" in ea.doctor().threads_reason


def test_doctor_survives_a_level_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_ISA", "avx9000")
    report = ea.doctor()
    assert report.instruction_set is None
    assert "avx9000" in report.instruction_set_reason
    assert not report.backends["native"].ok


def test_a_handle_is_one(checkpoint_directory: Path) -> None:
    with ea.Model.load(checkpoint_directory, backend="mock") as model:
        assert isinstance(model.submit([5], max_tokens=1), ea.Handle)
        assert not isinstance(model.stream([5], max_tokens=1), ea.Handle)


def test_inspect_reads_headers(checkpoint_directory: Path) -> None:
    info = ea.inspect(checkpoint_directory)
    assert (info.architecture, info.layout) == ("ernie4_5", "pt")
    assert dict(info.dtypes) == {"float32": 20}
    with pytest.raises(ea.ArgumentError, match="path=None: must be the path of a checkpoint directory"):
        ea.inspect(None)  # type: ignore[arg-type]


def test_sizes_and_counts_for_people() -> None:
    assert [display.size(n) for n in (12, 2048, 5 << 20, 3 << 30)] == [
        "12 B",
        "2.0 KiB",
        "5.0 MiB",
        "3.00 GiB",
    ]
    assert [display.count(n) for n in (999, 1500, 360_700_000, 21_830_000_000)] == [
        "999",
        "1.5 k",
        "360.7 M",
        "21.83 B",
    ]
    assert display.text_table([("a", "x\ny"), ("long", "z")]) == "a     x\n      y\nlong  z"


def test_what_public_methods_return_is_exported() -> None:
    """Names in the annotations of the classes that users meet first."""
    from ernie_accel.conversation_streams import ConversationStream
    from ernie_accel.metrics import Histogram

    assert ea.ConversationStream is ConversationStream
    assert ea.Histogram is Histogram
    returned = set()
    for cls in (ea.Model, ea.Conversation, ea.Metrics, ea.TokenStream, ea.AsyncTokenStream):
        for base in cls.__mro__:
            for member in (value for name, value in vars(base).items() if not name.startswith("_")):
                annotations = getattr(getattr(member, "fget", member), "__annotations__", {})
                returned |= set(re.findall(r"[A-Z][A-Za-z]+", str(annotations.get("return", ""))))
        returned |= set(re.findall(r"[A-Z][A-Za-z]+", str(vars(cls).get("__annotations__", {}))))
    ours = {name for name in returned if _is_ours(name)}
    assert {"Completion", "ConversationStream", "Handle", "Histogram", "Metrics"} <= ours
    assert ours - set(ea.__all__) <= {
        "ModelConfig",
        "Profiling",
        "Tokenizer",
    }  # described where they are used


def _is_ours(name: str) -> bool:
    modules = [module for key, module in sys.modules.items() if key.startswith("ernie_accel.")]
    return any(getattr(getattr(m, name, None), "__module__", "").startswith("ernie_accel.") for m in modules)
