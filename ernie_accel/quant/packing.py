"""Results of a quantization, layer by layer, to a directory of packed weights that can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import LoadOptions, Packer, PackingBackend
from ernie_accel.checkpoint.base import Checkpoint, Tensor, to_float32
from ernie_accel.checkpoint.packed import Unit, units
from ernie_accel.checkpoint.packed.unpack import unpack
from ernie_accel.checkpoint.packed.writer import PackedWriter
from ernie_accel.checkpoint.quantised import QuantisedMatrix
from ernie_accel.quant.calibrate import Calibration
from ernie_accel.quant.data_free import quantise_data_free
from ernie_accel.quant.memory import memory_explained
from ernie_accel.quant.recipe import Recipe
from ernie_accel.quant.results import LayerResult
from ernie_accel.types import Progress

__all__ = ["PackingJob"]

_WITHOUT_RESULT = ("embedding", "mtp")
"""Units for which nobody chooses codes."""


class PackingJob:
    """Quantises a checkpoint layer by layer and writes each layer when it is done.

    Args:
        checkpoint: An unquantised checkpoint.
        backend: Packs.
        recipe: How.
        sequences: Calibration ids; () quantises without data.
        description: What the sequences are, for ``recipe.describe``.
        threads: None takes what the machine allows; the result is the same for any number.
        multi_token: Whether to write multi-token prediction too, whose matrices are rounded to nearest in 8 bits.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: PackingBackend,
        recipe: Recipe,
        sequences: Sequence[Sequence[int]],
        description: str,
        threads: int | None = None,
        *,
        multi_token: bool = False,
    ) -> None:
        self.recipe = recipe.describe(description)
        self.errors: dict[str, float] = {}
        self._checkpoint, self._backend, self._settings = checkpoint, backend, recipe
        self._sequences, self._threads = sequences, threads
        self._multi_token = multi_token

    def write(
        self,
        target: Path,
        identity: Mapping[str, Any],
        files: Mapping[str, Path | bytes],
        progress: Progress | None,
    ) -> PackedWriter:
        """Write everything but the name; ``publish`` and ``close`` the writer that is returned.

        What an interrupted call with the same ``identity`` has finished is not computed again.

        Raises:
            CapacityError: The system's memory is used up; what is finished is kept.
        """
        writer = PackedWriter(target, identity)
        tokens = sum(map(len, self._sequences))
        try:
            with memory_explained(self._checkpoint.config, self._settings, tokens):
                self._add_units(writer, progress)
            writer.seal(
                precision=self._settings.precision,
                activations=self._settings.activations,
                recipe=self.recipe,
                source=self._checkpoint.info.name,
                files=files,
            )
        except BaseException:
            writer.close()
            raise
        return writer

    def _add_units(self, writer: PackedWriter, progress: Progress | None) -> None:
        parts = units(self._checkpoint.config, multi_token=self._multi_token)
        total, done = sum(unit.weights for unit in parts), 0

        def report(weights: int) -> None:
            if progress is not None:
                progress("quantize", done + weights, total)

        finished = [
            _Finished(self._checkpoint.config, unit, writer).result()
            for unit in parts
            if unit.name in writer.done
        ]
        results = self._results([result for result in finished if result is not None], report)
        current = _Current(self._checkpoint, self._settings)
        packer = self._backend.packer(
            current,
            LoadOptions(
                precision=self._settings.precision, threads=self._threads, multi_token=self._multi_token
            ),
        )
        for unit in parts:
            if unit.name not in _WITHOUT_RESULT:
                current.result = next(results)
                self.errors.update(current.result.errors)
            if unit.name not in writer.done:
                self._add_unit(writer, packer, current, unit)
            done += unit.weights
            report(0)

    def _results(self, finished: list[LayerResult], within: Callable[[int], None]) -> Iterator[LayerResult]:
        if self._sequences:
            return iter(
                Calibration(
                    self._checkpoint,
                    self._settings,
                    self._sequences,
                    finished=finished,
                    threads=self._threads,
                )
            )
        return quantise_data_free(
            self._checkpoint, self._settings, finished=finished, threads=self._threads, within=within
        )

    def _add_unit(self, writer: PackedWriter, packer: Packer, current: _Current, unit: Unit) -> None:
        tensors = {name: to_float32(current.tensor(name)) for name in unit.tensors}
        errors = {} if unit.name in _WITHOUT_RESULT else dict(current.result.errors)
        writer.add(unit.name, packer.pack(unit), tensors, note={"errors": errors})


class _Current:
    """A quantised checkpoint of which one layer at a time is there; what a Packer reads."""

    def __init__(self, source: Checkpoint, recipe: Recipe) -> None:
        self.result = LayerResult(index=-1, matrices={})
        self.config, self.info, self.directory = source.config, source.info, source.directory
        self.generation_config = source.generation_config
        self.precision, self.activations = recipe.precision, recipe.activations
        self.recipe = ""
        self._source = source

    def matrix(self, name: str) -> QuantisedMatrix:
        return self.result.matrices[name]

    def tensor(self, name: str) -> Tensor:
        if name in self.result.tensors:
            return Tensor(self.result.tensors[name], "float32")
        return self._source.tensor(name)

    def close(self) -> None:
        self._source.close()


class _Finished(Mapping[str, QuantisedMatrix]):
    """The matrices of a unit that an interrupted run has written, unpacked when they are asked for."""

    def __init__(self, config: ModelConfig, unit: Unit, writer: PackedWriter) -> None:
        self._config, self._unit, self._writer = config, unit, writer
        self._slots = {name: slot for slot in unit.slots for name in slot.tensors}

    def result(self) -> LayerResult | None:
        """Return it as a result; None of what is none."""
        if self._unit.name in _WITHOUT_RESULT:
            return None
        last = self._config.num_hidden_layers
        return LayerResult(
            index=last if self._unit.layer is None else self._unit.layer,
            matrices=self,
            tensors={name: self._writer.read_tensor(name) for name in self._unit.tensors},
            errors=self._writer.notes[self._unit.name].get("errors", {}),
        )

    def __getitem__(self, name: str) -> QuantisedMatrix:
        slot = self._slots[name]
        return unpack(self._config, slot, self._writer.read_matrix(slot.name))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)
