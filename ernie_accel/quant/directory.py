"""``ernie_accel.quantize``: a checkpoint to a directory that ``Model.load`` maps and uses as it lies."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions, PackingBackend
from ernie_accel.checkpoint.base import Checkpoint, has_multi_token
from ernie_accel.checkpoint.packed import WEIGHTS_NAME, PackedCheckpoint
from ernie_accel.checkpoint.packed.writer import PackedWriter
from ernie_accel.checkpoint.small_files import small_files
from ernie_accel.engine.local import LocalEngine
from ernie_accel.errors import ArgumentError, CapacityError, MissingExtraError, UnsupportedCheckpointError
from ernie_accel.original import new_directory, open_original
from ernie_accel.progress import reporting
from ernie_accel.quant.evaluate import Comparison, compare
from ernie_accel.quant.packing import PackingJob
from ernie_accel.quant.prepare import CALIBRATED
from ernie_accel.quant.recipe import QuantPrecision, Recipe
from ernie_accel.quant.report import REPORT_NAME, QuantizationReport
from ernie_accel.quant.sources import digest, stamp
from ernie_accel.quant.texts import Calibration, Split, split_ids
from ernie_accel.tokenizer import load_tokenizer
from ernie_accel.types import Precision, Progress

__all__ = ["quantize"]

PLOT_NAME = "report.png"


def quantize(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str],
    *,
    precision: QuantPrecision,
    calibration: Calibration | None = None,
    progress: bool | Progress | None = None,
) -> QuantizationReport:
    """Quantise a checkpoint and write a directory that ``Model.load`` takes.

    The directory holds the weights as the processor multiplies them, configuration and tokenizer files as they are,
    and the report (``report.json``; with the extra ``plot`` also ``report.png``). It appears under its name when it is
    complete. A call that was interrupted is finished by the same call: finished layers are kept in
    ``<target>.partial``.

    Args:
        source: A directory, a hub id, or a checkpoint from ``ernie_accel.testing``, unquantised.
        target: Directory to create; an empty one may exist.
        precision: ``"int8"`` or ``"int4"``.
        calibration: What to fit to: path of a text file or of a ``.jsonl`` file (a string or an object with ``"text"``
            a line), a list of texts, or a list of lists of token ids. None takes the built-in text up to 1B parameters,
            and nothing above: every weight is rounded to nearest. A tenth of it, up to 4,096 tokens, is kept for the
            report, which compares with fp32 up to 1B parameters.
        progress: None shows a bar on stderr if that is a terminal or a notebook; True always; False never; a
            callable is called as ``progress(stage, done, total)``.

    Raises:
        ArgumentError: The target exists and is not empty, or another argument can never work.
        CheckpointError: The source is damaged or quantised already, or the disk refuses.
        CapacityError: The system's memory does not suffice.
        UnsupportedCheckpointError: Its head size is no multiple of 16.
        TokenizerError: Calibration is text and there is no tokenizer.
        BackendUnavailableError: The native backend cannot run here.
    """
    began = time.perf_counter()
    if precision not in get_args(QuantPrecision):
        raise ArgumentError(f"precision={precision!r}: must be one of {', '.join(get_args(QuantPrecision))}")
    path = new_directory(target)
    with ExitStack() as stack:
        report = stack.enter_context(reporting(progress))
        checkpoint = open_original(source, "quantize", report, stack)
        if checkpoint.config.head_dim % 16:
            raise UnsupportedCheckpointError(
                f"{checkpoint.info.name}: head_dim={checkpoint.config.head_dim} is no multiple of 16, as codes need; "
                "load it with precision='int8' or 'int4' instead, which rounds to nearest"
            )
        job = _Quantization(checkpoint, Recipe.for_precision(precision), calibration, report)
        return job.run(path, began)


class _Quantization:
    """One call of ``quantize``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        calibration: Calibration | None,
        progress: Progress | None,
    ) -> None:
        backend = registry.choose("native")
        assert isinstance(backend, PackingBackend)
        self._backend, self._checkpoint, self._progress = backend, checkpoint, progress
        self._small = checkpoint.info.total_parameters <= CALIBRATED
        tokenizer = None if checkpoint.directory is None else load_tokenizer(checkpoint.directory)
        self._split: Split | None = None
        if calibration is not None or self._small:
            self._split = split_ids(calibration, checkpoint.config, tokenizer, recipe)
        chosen = self._split.calibration if self._split else None
        self._description = chosen.description if chosen else ""
        sequences = chosen.sequences if chosen else ()
        self._recipe = recipe
        self._job = PackingJob(
            checkpoint,
            backend,
            recipe,
            sequences,
            self._description,
            multi_token=has_multi_token(checkpoint),
        )
        self._identity = {
            "source": stamp(checkpoint),
            "recipe": repr(recipe),
            "calibration": digest(sequences),
            "library": version("ernie-accel"),
        }

    def run(self, target: Path, began: float) -> QuantizationReport:
        with self._job.write(target, self._identity, small_files(self._checkpoint), self._progress) as writer:
            report = self._report(writer, began)
            report.save(writer.directory / REPORT_NAME)
            with suppress(MissingExtraError):
                report.plot(writer.directory / PLOT_NAME)
            writer.publish()
        return report

    def _report(self, writer: PackedWriter, began: float) -> QuantizationReport:
        config = self._checkpoint.config
        path = writer.directory / WEIGHTS_NAME
        with PackedCheckpoint(path, config, directory=None, generation_config={}) as packed:
            accuracy, what = self._measure(packed)
            return QuantizationReport(
                source=self._checkpoint.info.name,
                precision=packed.precision,
                recipe=packed.recipe,
                calibration=self._description,
                parameters=packed.info.parameters,
                bytes=packed.info.bytes,
                file_bytes=path.stat().st_size,
                errors=self._job.errors,
                accuracy=accuracy,
                accuracy_of=what,
                seconds=time.perf_counter() - began,
            )

    def _measure(self, packed: PackedCheckpoint) -> tuple[Comparison | None, str]:
        if not self._small:
            return (
                None,
                f"the model has more than {CALIBRATED // 10**9}B parameters, too many to run in fp32 beside it",
            )
        if self._split is None or not any(len(ids) > 1 for ids in self._split.held_out):
            return None, "the text is too short to keep a part of it"
        held_out = [ids for ids in self._split.held_out if len(ids) > 1]
        try:
            with ExitStack() as stack:
                reference = self._engine(self._checkpoint, "fp32", stack)
                model = self._engine(packed, self._recipe.precision, stack)
                found = compare(reference, model, held_out, progress=self._progress)
                return found, f"{self._split.held_out_description}, another part of it"
        except (CapacityError, MemoryError) as error:
            return None, f"fp32 does not fit the memory ({error})"

    def _engine(self, checkpoint: Checkpoint, precision: Precision, stack: ExitStack) -> LocalEngine:
        options = LoadOptions(precision=precision, max_batch=1)
        engine = LocalEngine(registry.choose("native").open(checkpoint, options))
        stack.callback(engine.close)
        return engine
