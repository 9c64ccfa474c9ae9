"""From a path, hub id or virtual checkpoint to a model that is ready: what ``Model.load`` does."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ernie_accel import system
from ernie_accel.backends import registry
from ernie_accel.backends.base import Backend, EngineBackend, EngineInfo, LoadOptions, PackingBackend, Runner
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.multi_token import require_multi_token
from ernie_accel.checkpoint.packed import PackedCheckpoint
from ernie_accel.engine.defaults import checkpoint_defaults, file_end_ids
from ernie_accel.engine.local import LocalEngine
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.request import Engine
from ernie_accel.errors import ArgumentError, UnsupportedError
from ernie_accel.hub import check_hub_options
from ernie_accel.place import Place, Source, check_in_memory, find
from ernie_accel.planner.load import plan_load
from ernie_accel.planner.setting import Setting
from ernie_accel.progress import reporting
from ernie_accel.types import ModelInfo, Precision, Progress, SamplingParams

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig
    from ernie_accel.tokenizer import Tokenizer

__all__ = ["Loaded", "Source", "check_options", "load"]

_KV_PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The parts of a model.

    ``defaults`` are the checkpoint's sampling settings, ``end_ids`` what ends a text by any of its files, ``planned``
    what the planner was asked; None where another engine decides.
    """

    engine: Engine
    tokenizer: Tokenizer | None
    config: ModelConfig | None
    info: ModelInfo
    defaults: SamplingParams
    end_ids: frozenset[int]
    directory: Path | None
    planned: Setting | None = None


def load(
    source: Source | None,
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
    check_hub_options(revision, cache_dir)
    if engine is not None and not isinstance(engine, EngineOptions):
        raise ArgumentError(f"engine={engine!r}: must be None or EngineOptions(...)")
    choice = registry.pick(backend_name, options)
    registry.check_split(choice.backend, options)
    with ExitStack() as stack:
        report = stack.enter_context(reporting(progress))
        options = replace(options, progress=report, engine=engine)
        if isinstance(choice.backend, EngineBackend):
            registry.check_precision(choice.backend, options)
            place = find(source, revision, cache_dir, report, weights=choice.backend.reads_weights(options))
            return _with_engine(place, choice.backend, options, choice.reason)
        if source is None:
            raise ArgumentError(
                f"source=None: backend {choice.backend.name!r} loads a checkpoint: give a directory or a hub id"
            )
        checkpoint = _open(source, revision, cache_dir, report, stack)
        options = _settle_precision(checkpoint, choice.backend, options)
        if engine is not None and engine.speculation == "mtp":
            require_multi_token(checkpoint)
            options = replace(options, multi_token=True)
        tokenizer = _tokenizer(checkpoint.directory)
        # before the weights, so that a mistake in a small file shows at once
        defaults = checkpoint_defaults(checkpoint.generation_config)
        ends = frozenset(file_end_ids(checkpoint.generation_config) + checkpoint.config.eos_token_ids)
        planned, options = plan_load(checkpoint, choice.backend, options)
        prepared = _prepared(checkpoint, choice.backend, options, tokenizer)
        opened: Runner | Engine = choice.backend.open(prepared, options)
        if prepared is not checkpoint:  # what calibration took would count as this process's for ever
            del prepared
            system.return_freed_memory()
        return Loaded(
            engine=_engine(opened, tokenizer, engine),
            tokenizer=tokenizer,
            config=checkpoint.config,
            info=_info(checkpoint.info, _name(source), opened.info, choice.reason),
            defaults=defaults,
            end_ids=ends.union(tokenizer.eos_ids if tokenizer else ()),
            directory=checkpoint.directory,
            planned=planned,
        )


def _engine(opened: Runner | Engine, tokenizer: Tokenizer | None, options: EngineOptions | None) -> Engine:
    """Put our engine over a Runner; a backend of somebody else may have opened one of its own."""
    if isinstance(opened, Engine):
        return opened
    return LocalEngine(
        opened,
        decoder=tokenizer.stream if tokenizer else None,
        vocab_limit=tokenizer.vocab_size if tokenizer else 0,
        options=options,
    )


def _with_engine(place: Place, backend: EngineBackend, options: LoadOptions, reason: str) -> Loaded:
    """The parts of a model whose backend works on whole requests."""
    tokenizer, config = _tokenizer(place.directory), place.config
    known = config is not None  # else defaults are the engine's own
    defaults = checkpoint_defaults(place.generation_config) if known else SamplingParams()
    ends = set(file_end_ids(place.generation_config)) | set(config.eos_token_ids if config else ())
    engine = backend.open_engine(place.directory, config, options)
    name = place.info.name or str(engine.info.details.get("model", backend.name))
    return Loaded(
        engine=engine,
        tokenizer=tokenizer,
        config=config,
        info=_info(place.info, name, engine.info, reason),
        defaults=defaults,
        end_ids=frozenset(ends.union(tokenizer.eos_ids if tokenizer else ())),
        directory=place.directory,
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
    if not isinstance(backend, PackingBackend):
        raise UnsupportedError(
            f"backend {backend.name!r} takes no quantized directory such as {checkpoint.directory}; use 'native', or "
            "load the checkpoint that it was made of"
        )
    registry.check_precision(backend, options)
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
    if parts != "auto" and (not isinstance(parts, int) or isinstance(parts, bool) or parts < 1):
        raise ArgumentError(f"tensor_parallel={parts!r}: must be a whole number of at least 1 or 'auto'")


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
    check_in_memory(source, revision, cache_dir)
    return source


def _tokenizer(directory: Path | None) -> Tokenizer | None:
    if directory is None:
        return None
    from ernie_accel.tokenizer import load_tokenizer

    return load_tokenizer(directory)


def _name(source: Source) -> str | None:
    """The hub id that was given, None if it was something else."""
    from ernie_accel.hub import local_path

    return source if isinstance(source, str) and not local_path(source).exists() else None


def _info(info: ModelInfo, name: str | None, engine: EngineInfo, reason: str) -> ModelInfo:
    recipe = engine.details.get("recipe")
    return replace(
        info,
        name=name or info.name,
        backend=engine.backend,
        backend_reason=reason,
        precision=engine.precision,
        kv_precision=engine.kv_precision,
        recipe=None if recipe is None else str(recipe),
    )
