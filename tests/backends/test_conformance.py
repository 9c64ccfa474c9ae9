"""Every backend of ours through the one suite that third parties use too."""

from __future__ import annotations

from functools import cache

import pytest

from ernie_accel.backends.base import Availability, LoadOptions
from ernie_accel.backends.registry import get
from ernie_accel.testing.conformance import Case, Subject, Tolerance, cases
from tests.backends.chosen import of_an_executor

# Measured: bf16 0.043, int8 0.147, both in the mixture of experts, where a token now and then goes to another expert.
SUBJECTS: dict[str, tuple[str, LoadOptions, Tolerance | None]] = {
    "reference": ("reference", LoadOptions(), Tolerance(absolute=1e-4)),
    "mock": ("mock", LoadOptions(), None),
    "native-fp32": ("native", LoadOptions(precision="fp32", threads=2), Tolerance(absolute=1e-4)),
    "native-bf16": ("native", LoadOptions(precision="bf16", threads=2), Tolerance(relative=0.06, argmax=0.9)),
    "native-int8": (
        "native",
        LoadOptions(precision="int8", threads=2),
        Tolerance(relative=0.2, argmax=0.85),
    ),
    # Nearest rounding to 4 bits of random weights, whose logits are nearly flat: far, and still the same everywhere.
    "native-int4": (
        "native",
        LoadOptions(precision="int4", threads=2),
        Tolerance(relative=0.6, argmax=0.4),
    ),
    "paddle-fp32": ("paddle", LoadOptions(precision="fp32", threads=2), Tolerance(absolute=1e-4)),
    "paddle-bf16": ("paddle", LoadOptions(precision="bf16", threads=2), Tolerance(relative=0.06, argmax=0.9)),
    "onnxruntime": ("onnxruntime", LoadOptions(threads=2), Tolerance(absolute=1e-4)),
    # Measured: 0.09 in the mixture of experts, 0.03 in the others.
    "onnxruntime-int8": ("onnxruntime", LoadOptions(precision="int8", threads=2), Tolerance(relative=0.15)),
    "fastdeploy-ort": ("fastdeploy-ort", LoadOptions(threads=2), Tolerance(absolute=1e-4)),
    "fastdeploy-openvino": ("fastdeploy-openvino", LoadOptions(threads=2), Tolerance(absolute=1e-4)),
}

AGAIN = {"paddle-bf16", "onnxruntime-int8", "fastdeploy-openvino"}
"""Runs on the Runner of the subject before it."""


@cache
def availability(backend: str) -> Availability:
    return get(backend).available()


@cache  # opened once to learn what it can do
def subject(name: str) -> Subject:
    backend, options, tolerance = SUBJECTS[name]
    answer = availability(backend)
    if not answer.ok:
        pytest.skip(f"{answer.reason} {answer.next_step}")
    return Subject(backend=get(backend), options=options, tolerance=tolerance)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case}")
        for name in SUBJECTS
        for case in (of_an_executor() if name in AGAIN else cases())
    ],
)
def test_backend(name: str, case: Case) -> None:
    under_test = subject(name)
    if reason := case.skip_reason(under_test):
        pytest.skip(reason)
    case.run(under_test)
