"""Who is compared with our float32: what the library loads, and baselines on the same footing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import ernie_accel as ea
from ernie_accel import QuantizationReport
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.quant import QuantPrecision
from ernie_accel.quant.evaluate import HasLogits
from ernie_accel.types import Precision

from .rounding import integers, q4_0, q8_0
from .simulate import Recipe, RoundedCheckpoint, Scheme, SimulatedModel, body_and_head

FOLDER = Path(__file__).parents[2] / "build/accuracy"


class Closable(HasLogits, Protocol):
    """A loaded candidate."""

    def close(self) -> None:
        """Give the memory back."""
        ...


Loader = Callable[[Path], Closable]
KvPrecision = Precision | Literal["auto"]


@dataclass(frozen=True)
class Candidate:
    """How to load one, and a sentence on what it is (without the full stop)."""

    load: Loader
    about: str


def native(precision: Precision, kv_precision: KvPrecision = "auto") -> Loader:
    """Load with the library."""
    return lambda path: ea.Model.load(path, precision=precision, kv_precision=kv_precision, progress=False)


def rounded(recipe: Recipe) -> Loader:
    """Weights rounded, then everything in the library's float32."""

    def load(path: Path) -> ea.Model:
        with open_checkpoint(path) as checkpoint:
            source = RoundedCheckpoint(checkpoint, recipe)
            return ea.Model.load(source, precision="fp32", progress=False)

    return load


def simulated(recipe: Recipe) -> Loader:
    """Weights and inputs rounded, the rest in NumPy's float32."""

    def load(path: Path) -> SimulatedModel:
        with open_checkpoint(path) as checkpoint:
            return SimulatedModel(checkpoint, recipe)

    return load


def everywhere(scheme: Scheme) -> Recipe:
    """One scheme for body and head."""
    return body_and_head(scheme, scheme)


def quantised(precision: QuantPrecision, kv_precision: KvPrecision = "bf16") -> Loader:
    """Load the directory that ``ea.quantize`` makes, as it lies."""
    return lambda path: ea.Model.load(directory(path, precision), kv_precision=kv_precision, progress=False)


def directory(path: Path, precision: QuantPrecision) -> Path:
    """Where the quantised twin of a checkpoint lies; ``build`` is no part of the repository."""
    return FOLDER / f"{path.parent.name if path.name == 'model' else path.name}-{precision}"


def quantise(path: Path, precision: QuantPrecision, keep: bool) -> QuantizationReport:
    """Make that directory, with the library's own calibration text; ``keep`` leaves one that is there as it is."""
    target = directory(path, precision)
    if keep and target.exists():
        return QuantizationReport.load(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    return ea.quantize(path, target, precision=precision)


CANDIDATES: Mapping[str, Candidate] = {
    "int8": Candidate(quantised("int8"), '`ea.quantize(precision="int8")`, cache in bf16'),
    "int8, int8 cache": Candidate(quantised("int8", "int8"), "the same with the cache in int8"),
    "int4": Candidate(quantised("int4"), '`ea.quantize(precision="int4")`, cache in bf16'),
    "int4, int8 cache": Candidate(quantised("int4", "int8"), "the same with the cache in int8"),
    "bf16": Candidate(native("bf16"), '`precision="bf16"`'),
    "fp32, int8 cache": Candidate(
        native("fp32", "int8"), '`precision="fp32", kv_precision="int8"`: the cache alone'
    ),
    "W8A8, groups of 128": Candidate(
        simulated(everywhere(Scheme(integers(8, 128), integers(8, 128)))),
        "plain: weights int8 by row and 128 columns, inputs int8 by token and 128 columns, nearest rounding",
    ),
    "W8A8, whole rows": Candidate(
        simulated(everywhere(Scheme(integers(8), integers(8)))),
        "plainest: one scale for each row of weights and for each token's input",
    ),
    "Q4_0, 8-bit head": Candidate(
        rounded(body_and_head(Scheme(q4_0), Scheme(q8_0))),
        "llama.cpp's Q4_0 blocks in the body, Q8_0 in head and embedding, nearest rounding; inputs in float32",
    ),
    "Q8_0": Candidate(
        rounded(everywhere(Scheme(q8_0))), "llama.cpp's Q8_0 blocks everywhere; inputs in float32"
    ),
    "Q8_0, Q8_0 inputs": Candidate(
        simulated(everywhere(Scheme(q8_0, q8_0))),
        "the same with inputs rounded to Q8_0 too, as llama.cpp computes",
    ),
    "Q4_0, Q8_0 inputs": Candidate(
        simulated(body_and_head(Scheme(q4_0, q8_0), Scheme(q8_0, q8_0))),
        "Q4_0 in the body and Q8_0 in the head, with inputs rounded to Q8_0, as llama.cpp computes",
    ),
}
