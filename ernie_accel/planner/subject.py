"""What is planned: a configuration and how much of it lies quantised already, from whatever names a model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ernie_accel.architecture import PUBLISHED, ModelConfig, published_config
from ernie_accel.architecture.support import quantization_name
from ernie_accel.architecture.vision import PUBLISHED_VISION, is_vision_language, text_part
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError

__all__ = ["ModelSource", "Subject", "find_subject"]

ModelSource = str | os.PathLike[str] | ModelConfig | Mapping[str, Any] | Checkpoint

_CONFIG_LIMIT = 16 << 20
_PUBLISHERS = ("baidu", "PaddlePaddle")
_SHAPES = (*PUBLISHED, *PUBLISHED_VISION)
_KINDS = {"FP8": "fp8", "W4A8": "w4a8", "2-bit": "int2", "WINT4": "int4", "WINT8": "int8"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to plan for.

    Attributes:
        name: As it was given.
        config: Of the text model.
        extras: Parameters that are not part of it, by class.
        stored: Precision in which it lies quantised, None where it is not.
        packed: Bytes of packed weights by class, for a directory that ``ernie_accel.quantize`` wrote.
        cut_for: Devices that the checkpoint was cut for when it was made; None where it was not.
        virtual: Its tensors are made when they are asked for, so they take memory while they are read.
    """

    name: str
    config: ModelConfig
    extras: Mapping[str, int] = field(default_factory=dict)
    stored: str | None = None
    packed: Mapping[str, int] | None = None
    cut_for: int | None = None
    virtual: bool = False


def find_subject(
    model: ModelSource, *, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> Subject:
    """Return what is known of a model without reading a weight.

    Args:
        model: A published shape (``"300B-A47B"``), a directory or config.json, a hub id (of Baidu's own repositories
            the configuration is known, of others the small files are fetched), a configuration, or a checkpoint.
        revision: Of a hub id.
        cache_dir: Where files of hub ids are kept.

    Raises:
        ArgumentError: It is none of these.
        CheckpointError: The configuration is damaged.
        HubError: A hub id cannot be resolved.
        UnsupportedCheckpointError: It is of a kind that this version does not know.
    """
    if isinstance(model, ModelConfig):
        return Subject(name="a configuration", config=model)
    if isinstance(model, Mapping):
        return _from_keys(model, "a configuration", "config")
    if isinstance(model, (str, os.PathLike)):
        return _named(model, revision, cache_dir)
    if not all(hasattr(model, name) for name in ("config", "info", "tensor")):
        raise ArgumentError(
            f"model={model!r}: must be a published shape ({', '.join(_SHAPES)}), a path, a hub id, a configuration or "
            "a checkpoint"
        )
    return _from_checkpoint(model)


def _named(
    model: str | os.PathLike[str], revision: str | None, cache_dir: str | os.PathLike[str] | None
) -> Subject:
    from ernie_accel.hub import is_hub_id, local_path, resolve

    if not os.fspath(model):
        raise ArgumentError(f"model='': must be a path, a hub id or one of {', '.join(_SHAPES)}")
    path = local_path(model)
    known = isinstance(model, str) and not path.exists() and _published(model)
    if known:
        cut = re.search(r"-TP(\d+)-", str(model))
        subject = _shape(known, str(model), _words(str(model).rpartition("/")[2]))
        return replace(subject, cut_for=int(cut[1]) if cut else None)
    if isinstance(model, str) and not path.exists() and not is_hub_id(model):
        raise ArgumentError(
            f"model={model!r}: there is no such directory, and it is neither a hub id nor one of {', '.join(_SHAPES)}"
        )
    found = path
    if not path.exists():
        found = resolve(model, revision=revision, cache_dir=cache_dir, weights=False)
    return _from_path(found, str(model))


def _published(name: str) -> str | None:
    """The shape that a name, an abbreviation of it, or the hub id of a published repository stands for."""
    publisher, _, rest = name.rpartition("/")
    found = re.fullmatch(r"ERNIE-4\.5-((?:VL-)?[\d.]+B(?:-A\d+B)?)(?:-.*)?", rest)
    if publisher or found:
        return found[1] if found and publisher in ("", *_PUBLISHERS) and found[1] in _SHAPES else None
    wanted = rest.upper()
    for shape in _SHAPES:
        if wanted in (shape.upper(), re.sub(r"-A\d+B$", "", shape)):
            return shape
    return None


def _shape(shape: str, name: str, stored: str | None) -> Subject:
    if shape in PUBLISHED:
        return Subject(name=name, config=published_config(shape), stored=stored)
    config, extras = text_part(PUBLISHED_VISION[shape], shape)
    return Subject(name=name, config=config, extras=extras, stored=stored)


def _from_path(path: Path, name: str) -> Subject:
    from ernie_accel.checkpoint.packed import WEIGHTS_NAME
    from ernie_accel.checkpoint.strict_json import read_object

    directory = path.parent if path.name == "config.json" else path
    if (directory / WEIGHTS_NAME).exists():
        from ernie_accel.checkpoint import open_checkpoint

        with open_checkpoint(directory) as checkpoint:
            return _from_checkpoint(checkpoint)
    source = directory / "config.json"
    return _from_keys(read_object(source, _CONFIG_LIMIT), name, str(source))


def _from_keys(keys: Mapping[str, Any], name: str, source: str) -> Subject:
    settings = keys.get("quantization_config")
    stored = _words(str(settings)) if settings else None
    plain = {key: value for key, value in keys.items() if key != "quantization_config" or not stored}
    if is_vision_language(plain):
        config, extras = text_part(plain, source)
        return Subject(name=name, config=config, extras=extras, stored=stored)
    return Subject(name=name, config=ModelConfig.from_dict(plain, source), stored=stored)


def _words(text: str) -> str | None:
    """The precision that the words of a quantization_config or of a repository's name speak of."""
    kind = quantization_name(text.replace("-", " ").replace("2Bits", "2bit"))
    return next((precision for start, precision in _KINDS.items() if kind.startswith(start)), None)


def _from_checkpoint(checkpoint: Checkpoint) -> Subject:
    info = checkpoint.info
    packed = info.bytes if info.layout == "packed" else None
    return Subject(
        name=info.name,
        config=checkpoint.config,
        stored=getattr(checkpoint, "precision", None),
        packed=packed,
        virtual=checkpoint.directory is None,
    )
