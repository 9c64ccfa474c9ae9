"""From a path, hub id or virtual checkpoint to a model that is ready: what ``Model.load`` does."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ernie_accel.backends import registry
from ernie_accel.backends.base import Backend, LoadOptions, PackingBackend, RunnerInfo
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.packed import PackedCheckpoint
from ernie_accel.engine.defaults import checkpoint_defaults, file_end_ids
from ernie_accel.engine.local import LocalEngine
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.request import Engine
from ernie_accel.errors import ArgumentError, UnsupportedError
from ernie_accel.progress import reporting
from ernie_accel.types import ModelInfo, Precision, Progress, SamplingParams

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig
    from ernie_accel.tokenizer import Tokenizer

__all__ = ["Loaded", "Source", "check_options", "load"]

Source = str | os.PathLike[str] | Checkpoint

_KV_PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The parts of a model.

    ``defaults`` are the checkpoint's sampling settings, ``end_ids`` what ends a text by any of its files.
    """

    engine: Engine
    tokenizer: Tokenizer | None
    config: ModelConfig
    info: ModelInfo
    defaults: SamplingParams
    end_ids: frozenset[int]
    directory: Path | None


def load(
    source: Source,
    backend_name: str,
    options: LoadOptions,
    *,
    engine: EngineOptions | None,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool | Progress | None,
) -> Loaded:
    """Resolve, open and load. Arguments and errors are those of ``Model.load``."""
    check_options(options)
    if engine is not None and not isinstance(engine, EngineOptions):
        raise ArgumentError(f"engine={engine!r}: must be None or EngineOptions(...)")
    backend = registry.choose(backend_name)
    with ExitStack() as stack:
        report = stack.enter_context(reporting(progress))
        checkpoint = _open(source, revision, cache_dir, report, stack)
        options = _settle_precision(checkpoint, backend, options)
        tokenizer = _tokenizer(checkpoint.directory)
        # before the weights, so that a mistake in a small file shows at once
        defaults = checkpoint_defaults(checkpoint.generation_config)
        ends = frozenset(file_end_ids(checkpoint.generation_config) + checkpoint.config.eos_token_ids)
        options = replace(options, progress=report)
        runner = backend.open(_prepared(checkpoint, backend, options, tokenizer), options)
        return Loaded(
            engine=LocalEngine(
                runner,
                decoder=tokenizer.stream if tokenizer else None,
                vocab_limit=tokenizer.vocab_size if tokenizer else 0,
                options=engine,
            ),
            tokenizer=tokenizer,
            config=checkpoint.config,
            info=_info(checkpoint.info, source, runner.info),
            defaults=defaults,
            end_ids=ends.union(tokenizer.eos_ids if tokenizer else ()),
            directory=checkpoint.directory,
        )


def _prepared(
    checkpoint: Checkpoint, backend: Backend, options: LoadOptions, tokenizer: Tokenizer | None
) -> Checkpoint:
    """Let quantization choose the codes; backends never calibrate."""
    unquantised = options.precision in ("auto", "int8", "int4") and not hasattr(checkpoint, "precision")
    if not unquantised or not isinstance(backend, PackingBackend):
        return checkpoint
    from ernie_accel.quant.prepare import prepare

    return prepare(checkpoint, backend, options, tokenizer)


def _settle_precision(checkpoint: Checkpoint, backend: Backend, options: LoadOptions) -> LoadOptions:
    """A quantised checkpoint has one precision, and only some backends take it."""
    if not isinstance(checkpoint, PackedCheckpoint):
        return options
    options = registry.settle_precision(checkpoint, options)
    registry.check_precision(backend, options)
    if not isinstance(backend, PackingBackend):
        raise UnsupportedError(
            f"backend {backend.name!r} takes no quantized directory such as {checkpoint.directory}; use 'native', or "
            "load the checkpoint that it was made of"
        )
    return options


def check_options(options: LoadOptions) -> None:
    """Refuse values that no backend could ever take; a backend refuses what it lacks itself."""
    _check_choice("precision", options.precision, ("auto", *get_args(Precision)))
    _check_choice("kv_precision", options.kv_precision, ("auto", *_KV_PRECISIONS))
    for name in ("max_context", "max_batch", "memory_limit", "threads"):
        value = getattr(options, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise ArgumentError(f"{name}={value!r}: must be None or a whole number of at least 1")
    parts = options.tensor_parallel
    if parts != "auto" and (not isinstance(parts, int) or parts < 1):
        raise ArgumentError(f"tensor_parallel={parts!r}: must be a whole number of at least 1 or 'auto'")
    if parts not in (1, "auto"):
        raise UnsupportedError(f"tensor_parallel={parts!r}: no installed backend splits a model; use 1")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def _open(
    source: Source,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    report: Progress | None,
    stack: ExitStack,
) -> Checkpoint:
    """Open a checkpoint that is closed with the stack; one that the caller made stays the caller's."""
    if isinstance(source, (str, os.PathLike)):
        from ernie_accel.checkpoint import open_checkpoint
        from ernie_accel.hub import resolve

        # Without a callback the hub library would show bars of its own, asked for or not.
        report = report or (lambda stage, done, total: None)
        checkpoint = open_checkpoint(resolve(source, revision=revision, cache_dir=cache_dir, progress=report))
        stack.callback(checkpoint.close)
        return checkpoint
    if not all(hasattr(source, name) for name in ("config", "info", "tensor")):
        raise ArgumentError(
            f"source={source!r}: must be a path, a hub id, or a checkpoint from ernie_accel.testing"
        )
    if revision is not None or cache_dir is not None:
        raise ArgumentError("revision and cache_dir belong to hub ids; this checkpoint is in memory")
    return source


def _tokenizer(directory: Path | None) -> Tokenizer | None:
    if directory is None:
        return None
    from ernie_accel.tokenizer import load_tokenizer

    return load_tokenizer(directory)


def _info(info: ModelInfo, source: Source, runner: RunnerInfo) -> ModelInfo:
    from ernie_accel.hub import local_path

    recipe = runner.details.get("recipe")
    name = source if isinstance(source, str) and not local_path(source).exists() else info.name
    return replace(
        info,
        name=name,
        backend=runner.backend,
        precision=runner.precision,
        kv_precision=runner.kv_precision,
        recipe=None if recipe is None else str(recipe),
    )
