"""Opening a directory of packed weights: the header is read and checked, panels are views of the mapped file."""

from __future__ import annotations

import errno
import mmap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel import system
from ernie_accel.architecture import ROLES, ModelConfig, tensor_specs
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.checkpoint.packed.header import WEIGHTS_NAME, PackedHeader, read_header
from ernie_accel.checkpoint.packed.layout import PackedMatrix, units
from ernie_accel.checkpoint.packed.resident import file_state, read_into_memory
from ernie_accel.checkpoint.quantised import ActivationGroups
from ernie_accel.checkpoint.strict_json import check_regular_file
from ernie_accel.closing import Closing
from ernie_accel.errors import CapacityError, CheckpointError, ClosedError
from ernie_accel.types import ModelInfo

__all__ = ["PackedCheckpoint", "describe"]


class PackedCheckpoint(Closing):
    """Weights as a backend multiplies them; implements ``ernie_accel.checkpoint.base.Checkpoint``.

    ``tensor`` serves norms, router and its bias; everything else is had from ``packed``, as it lies.

    Attributes:
        path: The file of weights.
        directory: Where tokenizer files lie.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        *,
        directory: Path | None,
        generation_config: Mapping[str, Any],
        info: ModelInfo | None = None,
    ) -> None:
        """Read the header of the file at ``path``; ``info`` None describes what it says. Raises CheckpointError."""
        self.path = path
        self.config = config
        self.directory = directory
        self.generation_config = generation_config
        self._state = _state(
            path
        )  # before the header is read: what is mapped later must be the file that it speaks of
        self.header = read_header(path, config)
        self.info = info or describe(path.parent.name, config, self.header)
        self._map: mmap.mmap | None = None
        self._closed = False

    @property
    def precision(self) -> str:
        """Precision of the body: ``"int8"`` or ``"int4"``."""
        return self.header.precision

    @property
    def activations(self) -> ActivationGroups:
        """How inputs are quantised."""
        return self.header.activations

    @property
    def recipe(self) -> str:
        """How the codes were chosen."""
        return self.header.recipe

    @property
    def multi_token(self) -> bool:
        """Whether the directory holds what multi-token prediction has."""
        return "mtp.projection" in self.header.matrices

    def packed(self, name: str) -> PackedMatrix:
        """Return the packed matrix of that name; its panels are a read-only view of the file.

        Raises:
            CheckpointError: There is none, or the file changed since it was opened.
            ClosedError: The checkpoint was closed.
        """
        entry = self.header.matrices.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path}: there is no packed matrix {name!r}")
        panels = self._view(name, np.dtype(np.uint8), entry.offset, entry.bytes)
        return PackedMatrix(name, entry.precision, entry.group, entry.exact, panels)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is no matrix, by its ``-PT`` name.

        Raises:
            CheckpointError: There is none: matrices are packed, and no longer what they were made of.
            ClosedError: The checkpoint was closed.
        """
        entry = self.header.tensors.get(name)
        if entry is None:
            raise CheckpointError(
                f"{self.path}: there is no plain tensor {name!r}: matrices of a quantized directory are packed; "
                "read the checkpoint that it was made of"
            )
        values = self._view(name, np.dtype("<f4"), entry.offset, entry.bytes)
        return Tensor(values.reshape(entry.shape), "float32")

    def make_resident(self) -> None:
        """Read the file into memory of this process, in large pages where the system has them, instead of mapping it.

        It takes about a second for a gigabyte, and decoding is up to a tenth faster: the processor translates fewer
        addresses. To be called before anything else is asked for.

        Raises:
            CheckpointError: The file cannot be read, or changed since it was opened.
            CapacityError: There is no memory for it.
        """
        try:
            memory, state = read_into_memory(self.path, system.available_threads())
            self._check_unchanged(state)
            self._map = memory
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise CapacityError(f"{self.path}: the system has no memory left for the weights") from error
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def _view(self, name: str, dtype: np.dtype[Any], offset: int, size: int) -> npt.NDArray[Any]:
        if self._closed:
            raise ClosedError(f"{self.path}: the checkpoint was closed; open it again to read {name!r}")
        try:
            if self._map is None:
                with self.path.open("rb") as file:
                    self._check_unchanged(file_state(file.fileno()))
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            view = np.frombuffer(self._map, dtype, size // dtype.itemsize, offset)
            view.flags.writeable = False
            return view
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {name!r}: cannot be mapped: {error}") from error

    def _check_unchanged(self, state: tuple[int, ...]) -> None:
        """Shorter, it would end the process that reads it; replaced, it would not be what the header speaks of."""
        if state != self._state:
            raise CheckpointError(
                f"{self.path}: changed since it was opened; load it again when nothing writes it any more"
            )

    def close(self) -> None:
        """Let go of the file; the last view that was handed out unmaps it. May be called twice."""
        self._closed = True
        self._map = None


def _state(path: Path) -> tuple[int, ...]:
    check_regular_file(path)
    try:
        with path.open("rb") as file:
            return file_state(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def describe(name: str, config: ModelConfig, header: PackedHeader) -> ModelInfo:
    """Say what a file of packed weights holds."""
    parameters: Counter[str] = Counter()
    size: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    specs = tensor_specs(config)
    for unit in units(config):
        for slot in unit.slots:
            entry = header.matrices[slot.name]
            parameters[slot.role] += slot.weights
            size[slot.role] += entry.bytes
            dtypes[entry.precision] += 1
        for tensor in unit.tensors:
            parameters[specs[tensor].role] += specs[tensor].size
            size[specs[tensor].role] += header.tensors[tensor].bytes
            dtypes["float32"] += 1
    return ModelInfo(
        name=name,
        architecture=config.model_type,
        layout="packed",
        parameters={role: parameters[role] for role in ROLES if role in parameters},
        bytes={role: size[role] for role in ROLES if role in size},
        dtypes=dict(dtypes),
        derived=config.derived,
        files=(WEIGHTS_NAME,),
        precision=header.precision,
        recipe=header.recipe,
    )
