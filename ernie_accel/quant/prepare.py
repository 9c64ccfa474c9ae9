"""What ``Model.load`` does before a backend sees a checkpoint: calibrated codes for int8 and int4, kept on disk."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import cast

from ernie_accel.backends import registry
from ernie_accel.backends.base import Backend, LoadOptions, PackingBackend
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.packed import PackedCheckpoint, units
from ernie_accel.checkpoint.packed.header import FORMAT
from ernie_accel.errors import CheckpointError
from ernie_accel.quant.cache import Cache, open_cache
from ernie_accel.quant.calibrate import Calibration
from ernie_accel.quant.memory import memory_explained
from ernie_accel.quant.packing import PackingJob
from ernie_accel.quant.recipe import QuantPrecision, Recipe
from ernie_accel.quant.results import QuantisedResults
from ernie_accel.quant.sources import content, digest
from ernie_accel.quant.text import CalibrationIds, built_in_ids
from ernie_accel.tokenizer import Tokenizer

__all__ = ["CALIBRATED", "prepare"]

CALIBRATED = 1_000_000_000
"""Parameters up to which a model is calibrated unless the user asks for more."""

KEPT = 1_000_000
"""Parameters from which on the result is worth a place on disk; below, calibration takes less than a second."""


def prepare(
    checkpoint: Checkpoint, backend: Backend, options: LoadOptions, tokenizer: Tokenizer | None
) -> Checkpoint:
    """Return what the backend should open: the checkpoint as it is, or one with the codes of the library's recipe.

    Codes are chosen with the built-in text for int8 and int4, on backends that take them, up to 1B parameters. The
    checkpoint that is returned needs the given one only until it is opened by the backend.

    Raises:
        ArgumentError, UnsupportedError: What the backend says to the options, before anything slow is done.
        CheckpointError: A tensor is damaged, or holds values that are no numbers.
        CapacityError: The system's memory does not suffice for calibration.
    """
    offered = registry.precisions(backend)
    precision = offered[0] if options.precision == "auto" and offered else options.precision
    config = checkpoint.config
    if precision not in ("int8", "int4") or not isinstance(backend, PackingBackend):
        return checkpoint
    quantised = hasattr(checkpoint, "precision")
    if quantised or checkpoint.info.total_parameters > CALIBRATED or config.head_dim % 16:
        return checkpoint
    backend.estimate(config, options)
    recipe = Recipe.for_precision(cast("QuantPrecision", precision)).short(checkpoint.info.total_parameters)
    job = _Job(checkpoint, backend, recipe, options, tokenizer)
    cache = open_cache() if checkpoint.info.total_parameters >= KEPT else None
    return job.cached(cache) if cache else job.in_memory()


class _Job:
    """The quantization of one load."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: PackingBackend,
        recipe: Recipe,
        options: LoadOptions,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._checkpoint, self._backend, self._recipe = checkpoint, backend, recipe
        self._options, self._tokenizer = options, tokenizer

    def cached(self, cache: Cache) -> Checkpoint:
        """Take it from the cache, or make it and leave it there."""
        source = content(self._checkpoint, cache.hashes)
        if source is None:
            return self.in_memory()
        identity = {
            "source": source,
            "recipe": repr(self._recipe),
            "library": version("ernie-accel"),
            "format": FORMAT,
            **({"multi_token": True} if self._options.multi_token else {}),
        }
        key = digest(identity)[:32]
        try:
            path = cache.find(key, self._checkpoint.config)
        except CheckpointError as error:
            cache.warn("read from", error)
            return self.in_memory()
        if path is None:
            size = 2 * self._checkpoint.info.total_parameters
            path = cache.add(key, lambda work: self._write(work, identity), size)
        packed = None
        if path is not None:
            with suppress(CheckpointError):  # another process removed the entry since, to make room
                packed = self._open(path)
        return packed or self.in_memory()

    def in_memory(self) -> Checkpoint:
        """Make it for this load only."""
        ids = self._ids()
        with memory_explained(self._checkpoint.config, self._recipe, sum(map(len, ids.sequences))):
            results = Calibration(
                self._checkpoint,
                self._recipe,
                ids.sequences,
                threads=self._options.threads,
                progress=self._report,
            )
            return QuantisedResults(self._checkpoint, results, self._recipe, ids.description)

    def _report(self, stage: str, done: int, total: int) -> None:
        """Layers to weights, which is what a directory counts too."""
        if self._options.progress is not None:
            sizes = [unit.weights for unit in units(self._checkpoint.config) if unit.name != "embedding"]
            self._options.progress("quantize", sum(sizes[:done]), sum(sizes))

    def _ids(self) -> CalibrationIds:
        return built_in_ids(self._checkpoint.config, self._tokenizer, self._recipe)

    def _write(self, work: Path, identity: dict[str, object]) -> None:
        ids = self._ids()
        job = PackingJob(
            self._checkpoint,
            self._backend,
            self._recipe,
            ids.sequences,
            ids.description,
            self._options.threads,
            multi_token=self._options.multi_token,
        )
        with job.write(work, identity, {}, self._options.progress) as writer:
            writer.publish()

    def _open(self, path: Path) -> Checkpoint:
        checkpoint = self._checkpoint
        packed = PackedCheckpoint(
            path,
            checkpoint.config,
            directory=checkpoint.directory,
            generation_config=checkpoint.generation_config,
            info=checkpoint.info,
        )
        packed.make_resident()  # as fast as if it had been quantised just now, and the entry may go
        return packed
