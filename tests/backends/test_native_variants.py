"""The native backend on every instruction set of this machine, with any number of threads and either cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ernie_accel import env
from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import LoadOptions, Runner
from ernie_accel.backends.registry import available, get
from ernie_accel.errors import ArgumentError, UnsupportedError
from ernie_accel.testing.conformance import Case, Subject, Tolerance, cases
from ernie_accel.testing.conformance.subject import append

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

from ernie_accel import _native
from ernie_accel.backends.native.backend import NativeOptions

ISAS = _native.supported_isas()
TOLERANCES = {
    "fp32": Tolerance(absolute=1e-4),
    "bf16": Tolerance(relative=0.06, argmax=0.9),
    "int8": Tolerance(relative=0.2, argmax=0.85),
    "int4": Tolerance(relative=0.6, argmax=0.4),
}
CHECKS = ("logits", "invariance", "select")
CASES = [c for c in cases() if str(c).startswith(CHECKS) and c.model in ("dense-odd", "moe-odd")]
MODELS: dict[str, ModelConfig] = {case.model: case.config for case in CASES}


def subject(precision: str, **options: Any) -> Subject:
    load = LoadOptions(precision=precision, **options)  # type: ignore[arg-type]
    return Subject(backend=get("native"), options=load, tolerance=TOLERANCES[precision])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, precision: str, case: Case) -> None:
    case.run(subject(precision, threads=2, backend_options=NativeOptions(isa=isa)))


@pytest.mark.parametrize("kv_precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_either_cache_is_invariant(precision: str, kv_precision: str) -> None:
    under_test = subject(precision, threads=2, kv_precision=kv_precision)
    for case in CASES:
        if str(case).startswith("invariance"):
            case.run(under_test)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("model", MODELS)
def test_threads_change_no_bit(model: str, isa: str, precision: str) -> None:
    found = []
    for threads in (1, 2, 3):
        under_test = subject(precision, threads=threads, backend_options=NativeOptions(isa=isa))
        with under_test.runner(MODELS[model]) as runner:
            ids = under_test.ids(MODELS[model], 300)
            whole = append(runner, runner.open(), ids[:290])
            found.append((whole.tobytes(), append(runner, runner.open(), ids[:1]).tobytes()))
    assert found[0] == found[1] == found[2]


@contextmanager
def opened(options: LoadOptions) -> Iterator[Runner]:
    with Subject(backend=get("native"), options=options).runner(MODELS["dense-odd"]) as runner:
        yield runner


def test_the_instruction_set_in_use_is_told() -> None:
    with opened(LoadOptions(backend_options=NativeOptions(isa="portable"))) as runner:
        assert runner.info.details["isa"] == "portable"
    with opened(LoadOptions()) as runner:
        assert runner.info.details["isa"] == (env.isa() or ISAS[-1])


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "supported_isas", lambda: ["portable"])
    options = LoadOptions(backend_options=NativeOptions(isa="avx2"))
    with pytest.raises(UnsupportedError, match="offer portable"), opened(options):
        pass


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_ISA", "sse9")
    with pytest.raises(ArgumentError, match="sse9"), opened(LoadOptions()):
        pass


def test_the_environment_chooses_the_level_in_a_new_process() -> None:
    code = (
        "from ernie_accel.backends.base import LoadOptions\n"
        "from ernie_accel.backends.registry import get\n"
        "from ernie_accel.testing import synthetic, tiny_config\n"
        "print(get('native').open(synthetic(tiny_config()), LoadOptions()).info.details['isa'])\n"
    )
    for level in ISAS:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "ERNIE_ACCEL_ISA": level},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == level
