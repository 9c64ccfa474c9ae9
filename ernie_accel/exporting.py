"""Writes a checkpoint's decoder step as a graph for another engine, and sees whether it computes the same."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel import system
from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions, Runner, Step
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.exported import EXPORT_NAME
from ernie_accel.checkpoint.small_files import small_files
from ernie_accel.checkpoint.unfinished import DiskError
from ernie_accel.display import html_table, size, text_table
from ernie_accel.errors import ArgumentError, BackendError
from ernie_accel.export.formats import FORMATS, write_graph
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import Fusions
from ernie_accel.original import new_directory, open_original
from ernie_accel.progress import reporting
from ernie_accel.types import Progress

__all__ = ["ExportReport", "export_graph"]

REPORT_NAME = "report.json"
CHECKED_IDS = 24
"""Tokens of the check: the first two thirds as a prompt, the others one by one."""

TOLERANCE = {"fp32": 2e-4, "bf16": 0.05, "fp16": 0.01, "int8": 0.25}
"""Largest root mean square of the differences from ``reference``, by that of its logits."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ExportReport:
    """What was written and how well it computes; prints as a table.

    Attributes:
        files: Bytes of each file of the graph.
        fusions: How many operations are joined, by kind (``ernie_accel.export.step.Fusions``).
        checked_with: The engine that ran the written graph beside ``reference``; "" if none did, and ``unchecked`` then
            says why.
        max_error: Largest difference of two logits.
        relative_error: Root mean square of the differences by that of the reference's logits.
        step_milliseconds: Median of a decoding step with everything fused, if it was measured.
        gains: Milliseconds that a step takes longer without each fusion, if it was measured.
    """

    target: str
    format: str
    precision: str
    files: dict[str, int]
    fusions: dict[str, int]
    seconds: float
    checked_with: str = ""
    unchecked: str = ""
    max_error: float | None = None
    relative_error: float | None = None
    step_milliseconds: float | None = None
    gains: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ExportReport\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return html_table("ExportReport", self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of everything that is known."""
        checked = f"not checked: {self.unchecked}"
        if self.checked_with:
            checked = (
                f"{self.checked_with}: largest error {self.max_error:.3g}, relative {self.relative_error:.3g}"
            )
        rows = [
            ("target", self.target),
            ("format", f"{self.format}, {self.precision}"),
            ("files", ", ".join(f"{name} {size(number)}" for name, number in self.files.items())),
            ("checked", checked),
            ("fused", ", ".join(f"{name} {number}" for name, number in self.fusions.items())),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        if self.step_milliseconds is not None:
            gains = ", ".join(f"without {name} {gain:+.2f}" for name, gain in self.gains.items())
            rows.append(("step", f"{self.step_milliseconds:.2f} ms; {gains}"))
        return rows


def export_graph(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str],
    *,
    format: str = "onnx",
    precision: str = "fp32",
    time_fusions: bool = False,
    progress: bool | Progress | None = None,
) -> ExportReport:
    """Write the decoder step of a checkpoint into a directory that ``Model.load`` takes with the format's backend.

    The directory holds the graph, configuration and tokenizer files, and the report (``report.json``). It appears under
    its name when it is complete and has been checked: where the format's engine is installed, it runs the graph beside
    the backend ``reference``, first a prompt and then token by token.

    Args:
        source: A directory, a hub id, or a checkpoint from ``ernie_accel.testing``, unquantised.
        target: Directory to create; an empty one may exist.
        format: ``"onnx"`` (one file up to 2 GB, weights apart beyond), or ``"paddle"`` (program and weights).
        precision: In ONNX of the weights: ``"fp32"``, ``"fp16"`` or, with a scale for each row, ``"int8"``. In Paddle
            of the products on a CPU: ``"fp32"`` or ``"bf16"``; the weights in the file are float32.
        time_fusions: Measure what each fusion of the graph gains, by decoding without it on ONNX Runtime.
        progress: None shows a bar on stderr if that is a terminal or a notebook; True always; False never; a callable
            is called as ``progress(stage, done, total)``.

    Raises:
        ArgumentError: The target exists and is not empty, or another argument can never work.
        CheckpointError: The source is damaged or quantised, or the disk refuses.
        MissingExtraError: The package that writes the format is not installed.
        BackendError: The written graph computes something else; nothing is left behind.
    """
    began = time.perf_counter()
    path = new_directory(target)
    if format not in FORMATS:
        raise ArgumentError(f"format={format!r}: must be one of {', '.join(FORMATS)}")
    if precision not in FORMATS[format].precisions:
        raise ArgumentError(
            f"precision={precision!r}: {format} is written in {', '.join(FORMATS[format].precisions)}"
        )
    with ExitStack() as stack:
        report = stack.enter_context(reporting(progress))
        checkpoint = open_original(source, "export", report, stack)
        return _Export(checkpoint, format, precision, report).run(path, time_fusions, began)


class _Export:
    """One call of ``export_graph``."""

    def __init__(
        self, checkpoint: Checkpoint, format: str, precision: str, progress: Progress | None
    ) -> None:
        self._checkpoint, self._format, self._precision = checkpoint, format, precision
        self._progress = progress
        cache_dtype = "float16" if precision == "fp16" else "float32"
        self._signature = Signature.of(checkpoint.config, precision, cache_dtype)

    def run(self, target: Path, time_fusions: bool, began: float) -> ExportReport:
        with _unfinished(target) as directory:
            files = self._write(directory)
            accuracy = self._check(directory)
            timings = self._time_fusions() if time_fusions else {}
            report = ExportReport(
                target=str(target),
                format=self._format,
                precision=self._precision,
                files=files,
                fusions=Fusions().counts(self._checkpoint.config),
                seconds=time.perf_counter() - began,
                **accuracy,
                **timings,
            )
            _write_json(directory / REPORT_NAME, asdict(report))
        return report

    def _write(self, directory: Path) -> dict[str, int]:
        main = write_graph(self._format, self._checkpoint, self._signature, directory, self._progress)
        files = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
        for name, content in small_files(self._checkpoint).items():
            (directory / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        _write_json(
            directory / EXPORT_NAME,
            {
                "format": self._format,
                "precision": self._precision,
                "main": main,
                "files": files,
                "signature": self._signature.to_dict(),
                "producer": "ernie_accel",
            },
        )
        return files

    def _check(self, directory: Path) -> dict[str, Any]:
        """Run the graph beside ``reference``. Raises BackendError if it computes something else."""
        backend = registry.get(FORMATS[self._format].backend)
        status = backend.available()
        need, free = 4 * self._checkpoint.info.total_parameters, system.available_memory()
        if not status.ok:
            return {"unchecked": f"{status.reason} {status.next_step}".rstrip()}
        if free < 3 * need:
            return {
                "unchecked": f"reference and graph need {size(3 * need)} of memory, {size(free)} are free"
            }
        expected = _decode(registry.get("reference").open(self._checkpoint, LoadOptions(max_batch=1)))
        with open_checkpoint(directory) as exported:
            runner = backend.open(exported, LoadOptions(max_batch=1))
        engine = str(runner.info.details.get("engine", backend.name))
        actual = _decode(runner)
        found = {
            "max_error": float(np.abs(actual - expected).max()),
            "relative_error": _relative(actual, expected),
        }
        if not found["relative_error"] <= TOLERANCE[self._precision]:
            raise BackendError(
                f"the graph computes something else than reference on {engine}: relative error "
                f"{found['relative_error']:.3g}, allowed {TOLERANCE[self._precision]}; nothing was kept"
            )
        return {"checked_with": engine, **found}

    def _time_fusions(self) -> dict[str, Any]:
        from ernie_accel.bench.fusions import time_fusions

        return time_fusions(self._checkpoint, self._progress)


def _decode(runner: Runner) -> npt.NDArray[np.float64]:
    """Logits of the check's ids, the first in one step and the others one by one; closes the runner."""
    try:
        length = min(CHECKED_IDS, runner.info.max_context)
        ids = np.random.default_rng(0).integers(0, runner.info.vocab_size, length)
        seq, prompt = runner.open(), max(1, 2 * length // 3)
        steps = [ids[:prompt], *ids[prompt:].reshape(-1, 1)]
        rows = [runner.forward([Step(seq, part, len(part))])[0].logits for part in steps]
        return np.concatenate([row for row in rows if row is not None]).astype(np.float64)
    finally:
        runner.close()


def _relative(actual: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A directory beside the target that takes its name at the end of the block, or is removed."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            partial.mkdir(parents=True)
            yield partial
            _publish(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DiskError(f"{target}: cannot be written: {error.strerror or error}") from error


def _publish(partial: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        target.rmdir()  # an empty one; anything else was refused before
    partial.rename(target)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
