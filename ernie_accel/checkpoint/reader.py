"""Opening a checkpoint directory: headers are read and checked at once, tensors are views of the mapped files."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ROLES, ModelConfig
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.checkpoint.exported import EXPORT_NAME, ExportedCheckpoint
from ernie_accel.checkpoint.files import (
    CONFIG_NAME,
    INDEX_NAME,
    find_config,
    find_weights,
    name_some,
    refuse_pickle,
    refuse_ranks,
)
from ernie_accel.checkpoint.headers import DTYPE_BITS
from ernie_accel.checkpoint.multi_token import is_multi_token, place_multi_token
from ernie_accel.checkpoint.packed import WEIGHTS_NAME, PackedCheckpoint
from ernie_accel.checkpoint.plan import STORED_DTYPES, Placed, Plan, Stored, make_plan
from ernie_accel.closing import Closing
from ernie_accel.errors import ArgumentError, CheckpointError, ClosedError
from ernie_accel.types import ModelInfo

__all__ = ["DirectoryCheckpoint", "inspect", "open_checkpoint", "read_settings"]

GENERATION_NAME = "generation_config.json"

_ITEMS: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}


class _Headers(NamedTuple):
    directory: Path
    config: ModelConfig
    generation_config: Mapping[str, Any]
    plan: Plan
    info: ModelInfo
    multi_token: Stored


def open_checkpoint(
    path: str | os.PathLike[str],
) -> DirectoryCheckpoint | PackedCheckpoint | ExportedCheckpoint:
    """Open a directory with an ERNIE 4.5 text checkpoint: ``-PT`` or ``-Paddle``, in one file or in shards, packed by
    ``ernie_accel.quantize``, or a graph by ``ernie-accel export``.

    Every name, shape, dtype and offset is checked here; the bytes of tensors are touched when they are used.

    Raises:
        CheckpointError: Anything is missing, damaged or contradictory; the message names file and tensor.
        UnsupportedCheckpointError: It is of a kind that this version does not run (quantized by other programs, vision,
            a pickle).
    """
    directory, config, generation = read_settings(path)
    if (directory / EXPORT_NAME).exists():
        return ExportedCheckpoint(directory, config, generation)
    if not (directory / WEIGHTS_NAME).exists():
        return DirectoryCheckpoint(_read_headers(directory, config, generation))
    _refuse_second_weights(directory)
    packed = PackedCheckpoint(
        directory / WEIGHTS_NAME, config, directory=directory, generation_config=generation
    )
    packed.info = replace(packed.info, name=_display_name(directory.resolve()))
    return packed


def inspect(path: str | os.PathLike[str]) -> ModelInfo:
    """Say what a checkpoint directory holds, from its headers alone. Raises as ``open_checkpoint`` does."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.info


def read_settings(
    source: str | os.PathLike[str], *, quantized: bool = False
) -> tuple[Path, ModelConfig, Mapping[str, Any]]:
    """Return directory, configuration and generation_config.json ({} where there is none); looks at no weights.

    Args:
        source: The directory.
        quantized: Weights that other programs have quantized are no matter: somebody else reads them.

    Raises:
        CheckpointError: There is no such directory, or one of the two files is missing or damaged.
        UnsupportedCheckpointError: It is no ERNIE 4.5 text model.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(f"path={source!r}: must be the path of a checkpoint directory")
    path = Path(source)
    if not path.is_dir():
        refuse_pickle(path)
        what = (
            "is a file: give the directory that holds it" if path.exists() else "there is no such directory"
        )
        raise CheckpointError(f"{path}: {what}")
    refuse_ranks(path)
    try:
        keys = {k: v for k, v in find_config(path).items() if not (quantized and k == "quantization_config")}
        config = ModelConfig.from_dict(keys, source=str(path / CONFIG_NAME))
        generation = find_config(path, GENERATION_NAME) if (path / GENERATION_NAME).exists() else {}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return path, config, generation


def _refuse_second_weights(directory: Path) -> None:
    others = [item.name for item in directory.iterdir() if item.name.endswith((".safetensors", INDEX_NAME))]
    if others:
        raise CheckpointError(
            f"{directory}: holds {WEIGHTS_NAME} and {name_some(others)}, which both give the weights: remove one"
        )


def _read_headers(path: Path, config: ModelConfig, generation: Mapping[str, Any]) -> _Headers:
    try:
        weights = find_weights(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    plan = make_plan(config, weights.tensors, path)
    files = tuple(file.name for file in weights.paths)
    info = _describe(path, config, plan, files)
    beside = {name: located for name, located in weights.tensors.items() if is_multi_token(name)}
    return _Headers(path, config, generation, plan, info, beside)


def _describe(path: Path, config: ModelConfig, plan: Plan, files: tuple[str, ...]) -> ModelInfo:
    parameters: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for name, item in plan.placed.items():
        spec = plan.specs[name]
        parameters[spec.role] += spec.size
        size[spec.role] += spec.size * DTYPE_BITS[item.located.entry.dtype] // 8
    stored = {item.name: STORED_DTYPES[item.located.entry.dtype] for item in plan.placed.values()}
    derived = config.derived
    if plan.zero_biases:
        derived += ("moe_use_aux_free is false and no correction bias is stored: zeros are used",)
    return ModelInfo(
        name=_display_name(path.resolve()),
        architecture=config.model_type,
        layout="paddle" if plan.layout.transposed else "pt",
        parameters={role: parameters[role] for role in ROLES if role in parameters},
        bytes={role: size[role] for role in ROLES if role in size},
        dtypes=dict(Counter(stored.values())),
        derived=derived,
        set_aside=plan.set_aside,
        files=files,
    )


def _display_name(path: Path) -> str:
    # the hub's cache calls a directory by its commit: .../models--org--name/snapshots/<commit>
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository[len("models--") :].replace("--", "/", 1)
    return path.name


class DirectoryCheckpoint(Closing):
    """A checkpoint on disk; implements ``ernie_accel.checkpoint.base.Checkpoint``. Made by ``open_checkpoint``."""

    def __init__(self, headers: _Headers) -> None:
        self.directory: Path | None = headers.directory
        self.config = headers.config
        self.generation_config = headers.generation_config
        self.info = headers.info
        self._plan = headers.plan
        self._multi_token = headers.multi_token
        self._multi_token_placed: Mapping[str, Placed] | None = None
        self._maps: dict[Path, mmap.mmap] = {}
        self._closed = False

    @property
    def multi_token(self) -> bool:
        """Whether there are tensors of multi-token prediction and config.json speaks of them."""
        return bool(self._multi_token) and self.config.num_nextn_predict_layers > 0

    def tensor(self, name: str) -> Tensor:
        """Return a read-only view of the tensor of that ``-PT`` name.

        It is strided where the layout on disk differs, and a copy only where the file does not align its values.
        Tensors of multi-token prediction are checked, all of them, when the first is asked for.

        Raises:
            CheckpointError: There is no such tensor, or the file changed since it was opened.
            ClosedError: The checkpoint was closed.
        """
        if self._closed:
            raise ClosedError(f"{self.directory}: the checkpoint was closed; open it again to read {name!r}")
        if name in self._plan.zero_biases:
            return _zeros(self._plan.specs[name].shape)
        places = self._places(name)
        if name not in places:
            raise CheckpointError(f"{self.directory}: there is no tensor {name!r}")
        placed = places[name]
        whole = self._stored(placed)
        matrix = whole.T if placed.part.transposed else whole
        dtype = STORED_DTYPES[placed.located.entry.dtype]
        return Tensor(matrix[placed.part.start : placed.part.stop], dtype)

    def _places(self, name: str) -> Mapping[str, Placed]:
        if not is_multi_token(name):
            return self._plan.placed
        if self._multi_token_placed is None:
            assert self.directory is not None
            self._multi_token_placed = place_multi_token(
                self.config, self._multi_token, self._plan.layout, self.directory
            )
        return self._multi_token_placed

    def _stored(self, placed: Placed) -> npt.NDArray[Any]:
        path, entry = placed.located
        item = _ITEMS[STORED_DTYPES[entry.dtype]]
        count = (entry.end - entry.start) // item.itemsize
        try:
            flat = np.frombuffer(self._map(path), dtype=item, count=count, offset=entry.start)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: tensor {placed.name!r}: cannot be mapped: {error}") from error
        if not flat.flags.aligned:
            flat = flat.copy()
            flat.flags.writeable = False
        return flat.reshape(entry.shape)

    def _map(self, path: Path) -> mmap.mmap:
        mapped = self._maps.get(path)
        if mapped is None:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[path] = mapped
        return mapped

    def close(self) -> None:
        """Let go of the files; the last view that was handed out unmaps them. May be called twice."""
        self._closed = True
        self._maps.clear()


def _zeros(shape: tuple[int, ...]) -> Tensor:
    data = np.zeros(shape, np.float32)
    data.flags.writeable = False
    return Tensor(data, "float32")
