"""What a source is, for backends whose library reads the files itself: a directory, its settings, and no tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.types import ModelInfo, Progress

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["Place", "Source", "check_in_memory", "find"]

Source = str | os.PathLike[str] | Checkpoint


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model lies, if anywhere.

    ``info`` has the name and, as far as the headers could be read, what the weights are.
    """

    info: ModelInfo
    directory: Path | None = None
    config: ModelConfig | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)


def find(
    source: Source | None,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    report: Progress | None,
    *,
    weights: bool,
) -> Place:
    """Resolve a source; without ``weights`` none are downloaded, and a directory needs no config.json.

    Raises:
        CheckpointError: There is no such directory, or its settings are damaged.
        HubError: A hub id cannot be resolved or downloaded.
        ArgumentError: It is no source.
    """
    if source is None:
        check_in_memory(None, revision, cache_dir)
        return Place(info=_unknown("", "unknown"))
    if not isinstance(source, (str, os.PathLike)):
        check_in_memory(source, revision, cache_dir)
        return Place(
            info=source.info,
            directory=source.directory,
            config=source.config,
            generation_config=source.generation_config,
        )
    from ernie_accel.hub import local_path, resolve

    report = report or (lambda stage, done, total: None)
    hub_id = source if isinstance(source, str) and not local_path(source).exists() else None
    directory = resolve(source, revision=revision, cache_dir=cache_dir, progress=report, weights=weights)
    return _in_directory(directory, hub_id or directory.resolve().name, weights)


def _in_directory(directory: Path, name: str, weights: bool) -> Place:
    from ernie_accel.checkpoint import read_settings
    from ernie_accel.checkpoint.files import CONFIG_NAME

    if not weights and directory.is_dir() and not (directory / CONFIG_NAME).exists():
        return Place(info=_unknown(name, "unknown"), directory=directory)
    _, config, generation = read_settings(directory, quantized=True)
    return Place(
        info=_described(directory, name, config.model_type),
        directory=directory,
        config=config,
        generation_config=generation,
    )


def _described(directory: Path, name: str, architecture: str) -> ModelInfo:
    """Say what the headers say, if this library can read them; the backend's library may know more kinds."""
    from ernie_accel.checkpoint import inspect

    try:
        return inspect(directory)
    except CheckpointError:
        return _unknown(name, architecture)


def _unknown(name: str, architecture: str) -> ModelInfo:
    return ModelInfo(
        name=name, architecture=architecture, layout="unknown", parameters={}, bytes={}, dtypes={}
    )


def check_in_memory(source: object, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> None:
    """Raise ArgumentError unless the source is a checkpoint that somebody has opened, or None."""
    if source is not None and not all(hasattr(source, name) for name in ("config", "info", "tensor")):
        raise ArgumentError(
            f"source={source!r}: must be a path, a hub id, or a checkpoint from ernie_accel.testing"
        )
    if revision is not None or cache_dir is not None:
        raise ArgumentError("revision and cache_dir belong to hub ids; this is none")
