"""Writing a whole checkpoint directory, in either published layout."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import multi_token_specs, tensor_specs
from ernie_accel.architecture.config import ConfigDialect
from ernie_accel.checkpoint.base import Checkpoint, StoredDtype, has_multi_token
from ernie_accel.checkpoint.layouts import PADDLE, PT, Part, full_name, stored_parts
from ernie_accel.checkpoint.strict_json import encode_json
from ernie_accel.checkpoint.writer import TensorSource, replace_file, write_safetensors
from ernie_accel.errors import ArgumentError, CheckpointError

__all__ = ["Bf16Tag", "LayoutName", "save_checkpoint", "stored_tensors"]

LayoutName = Literal["pt", "paddle"]

Bf16Tag = Literal["BF16", "U16"]
"""How bf16 is labelled in files; Paddle's own writer labels it U16."""

INDEX_NAME = "model.safetensors.index.json"


def save_checkpoint(
    source: Checkpoint,
    directory: str | os.PathLike[str],
    *,
    layout: LayoutName = "pt",
    shards: int = 1,
    bf16_tag: Bf16Tag = "BF16",
    config_dialect: ConfigDialect | None = None,
    dtype_of: Callable[[str], StoredDtype] | None = None,
) -> None:
    """Write config.json, generation_config.json and the weights; tokenizer files are not copied.

    Everything is written beside the target and renamed at the end, so an interrupted call leaves no half of it.

    Args:
        source: Any checkpoint; one stored tensor at a time is held in memory.
        directory: Is created; one that exists must be empty.
        layout: ``"pt"`` or ``"paddle"`` (fused and transposed).
        shards: Number of weight files; more than one come with an index.
        bf16_tag: Label of bf16 tensors.
        config_dialect: Spelling of config.json; None takes the layout's own.
        dtype_of: Dtype of a tensor by its ``-PT`` name, for sources that would have to make it to know; None asks
            the source for the tensor.

    Raises:
        ArgumentError: An argument can never work, or the directory is not empty.
        CheckpointError: The disk refuses.
    """
    target = Path(directory)
    _check_arguments(target, layout, shards, bf16_tag)
    stored = stored_tensors(source, layout, bf16_tag, dtype_of or (lambda name: source.tensor(name).dtype))
    if shards > len(stored):
        raise ArgumentError(f"shards={shards}: must be at most the number of tensors, {len(stored)}")
    config = source.config.to_dict(config_dialect or layout)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        try:
            work.mkdir(parents=True)
            _write_json(work / "config.json", config)
            if source.generation_config:
                _write_json(work / "generation_config.json", source.generation_config)
            _write_weights(work, _split(stored, shards), {"format": "pt" if layout == "pt" else "np"})
            # replaces an empty directory
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except CheckpointError as error:
        # the file that failed lay in the working directory, which nobody knows
        raise CheckpointError(str(error).replace(str(work), str(target))) from error
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error


def _check_arguments(target: Path, layout: str, shards: int, bf16_tag: str) -> None:
    if layout not in ("pt", "paddle"):
        raise ArgumentError(f"layout={layout!r}: must be 'pt' or 'paddle'")
    if bf16_tag not in ("BF16", "U16"):
        raise ArgumentError(f"bf16_tag={bf16_tag!r}: must be 'BF16' or 'U16'")
    if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
        raise ArgumentError(f"shards={shards!r}: must be a whole number of at least 1")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(
            f"directory={str(target)!r}: exists and is not an empty directory; choose a new name"
        )


def stored_tensors(
    source: Checkpoint, layout: LayoutName, bf16_tag: Bf16Tag, dtype_of: Callable[[str], StoredDtype]
) -> list[TensorSource]:
    """Return every tensor of a checkpoint as it lies in files of a layout."""
    specs = tensor_specs(source.config)
    if has_multi_token(source):
        specs = {**specs, **multi_token_specs(source.config)}
    stored_layout = PADDLE if layout == "paddle" else PT
    members: dict[str, list[tuple[str, Part]]] = {}
    for name, part in stored_parts(specs, stored_layout).items():
        members.setdefault(part.stored, []).append((name, part))
    tags = {"float32": "F32", "float16": "F16", "bfloat16": bf16_tag}
    sources = []
    for stored, parts in members.items():
        name = full_name(stored, stored_layout)
        dtypes = {dtype_of(part_name) for part_name, _ in parts}
        if len(dtypes) > 1:
            raise ArgumentError(
                f"tensor {name!r} would join tensors of {', '.join(sorted(dtypes))}: must be one dtype"
            )
        sources.append(
            TensorSource(name, parts[0][1].shape, tags[dtypes.pop()], partial(_produce, source, parts))
        )
    return sources


def _produce(source: Checkpoint, parts: Sequence[tuple[str, Part]]) -> npt.NDArray[Any]:
    pieces = [source.tensor(name).data for name, _ in parts]
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return whole.T if parts[0][1].transposed else whole


def _split(stored: list[TensorSource], shards: int) -> list[list[TensorSource]]:
    # by number of tensors: equal enough, and every shard holds at least one
    bounds = [len(stored) * i // shards for i in range(shards + 1)]
    return [stored[a:b] for a, b in pairwise(bounds)]


def _write_weights(directory: Path, groups: list[list[TensorSource]], metadata: Mapping[str, str]) -> None:
    if len(groups) == 1:
        write_safetensors(directory / "model.safetensors", groups[0], metadata)
        return
    weight_map: dict[str, str] = {}
    size = 0
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(directory / name, group, metadata)
        weight_map.update(dict.fromkeys((tensor.name for tensor in group), name))
        size += sum(tensor.nbytes for tensor in group)
    _write_json(directory / INDEX_NAME, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    replace_file(path, lambda file: file.write(encode_json(values)))
