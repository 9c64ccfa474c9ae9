"""Which files of a directory hold the weights, and what their headers say together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ernie_accel.checkpoint.headers import Entry, Header, read_header
from ernie_accel.checkpoint.strict_json import read_object
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError

__all__ = [
    "CONFIG_NAME",
    "INDEX_NAME",
    "SHARD_NAME",
    "SINGLE_NAME",
    "Located",
    "WeightFiles",
    "find_config",
    "find_weights",
    "name_some",
    "refuse_ranks",
]

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SHARD_NAME = "shard.json"
"""Makes a directory that of one rank of a checkpoint that was split."""

_CONFIG_LIMIT = 16 << 20
_INDEX_LIMIT = 128 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_SHARD_NAME = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")
_PICKLES = (".pdparams", ".pdiparams", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_FOREIGN = (".gguf", ".onnx", ".msgpack", ".h5", ".npz", ".pdmodel")


class Located(NamedTuple):
    """A stored tensor and the file that it lies in."""

    path: Path
    entry: Entry


class WeightFiles(NamedTuple):
    """All weight files of a checkpoint; ``tensors`` goes by the names in the files."""

    paths: tuple[Path, ...]
    tensors: Mapping[str, Located]


def name_some(names: Iterable[str], limit: int = 5) -> str:
    """List names for a message, the first few and how many more."""
    ordered = sorted(names)
    more = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {more} more" if more > 0 else "")


def find_config(directory: Path, name: str = CONFIG_NAME) -> dict[str, Any]:
    """Read a configuration file of the directory.

    Raises:
        CheckpointError: There is no such directory or file in it, or the file is damaged.
    """
    if not directory.exists():
        raise CheckpointError(f"{directory}: there is no such directory; give that of a checkpoint")
    if not (directory / name).exists():
        raise CheckpointError(
            f"{directory / name}: is missing: give the directory that holds it, beside the weights"
        )
    return read_object(directory / name, _CONFIG_LIMIT)


def refuse_ranks(directory: Path) -> None:
    """Raise CheckpointError if the directory belongs to a checkpoint that was split, which is no model to load."""
    if (directory / SHARD_NAME).exists():
        ranks = directory.absolute().parent
        raise CheckpointError(
            f"{directory}: holds what one rank has of a checkpoint that was split ({SHARD_NAME}), and no whole model: "
            f"use the checkpoint that was split, or put it together with: ernie-accel shard {ranks} TARGET --merge"
        )
    if any((item / SHARD_NAME).exists() for item in directory.glob("rank-*-of-*")):
        raise CheckpointError(
            f"{directory}: holds the ranks of a checkpoint that was split, and no whole model: use the checkpoint that "
            f"was split, or put it together with: ernie-accel shard {directory} TARGET --merge"
        )


def find_weights(directory: Path) -> WeightFiles:
    """Read the headers of all weight files.

    Raises:
        CheckpointError: There are none, one is missing or damaged, or the index and the files contradict each other.
        UnsupportedCheckpointError: The weights are in a format other than safetensors.
    """
    if (directory / INDEX_NAME).exists():
        return _read_sharded(directory)
    path = _single_file(directory)
    return WeightFiles(
        (path,), {name: Located(path, entry) for name, entry in read_header(path).tensors.items()}
    )


def _single_file(directory: Path) -> Path:
    names = sorted(item.name for item in directory.iterdir())
    if SINGLE_NAME in names:
        return directory / SINGLE_NAME
    found = [name for name in names if name.endswith(".safetensors")]
    if not found:
        _refuse_other_formats(directory, names)
    shard = _SHARD_NAME.fullmatch(found[0])
    if len(found) > 1 or (shard and int(shard[2]) > 1):
        raise CheckpointError(
            f"{directory}: holds {name_some(found)} but no {INDEX_NAME}, which says what is where"
        )
    return directory / found[0]


def _refuse_other_formats(directory: Path, names: list[str]) -> None:
    for name in names:
        refuse_pickle(directory / name)
    foreign = [name for name in names if name.endswith(_FOREIGN)]
    if foreign:
        raise UnsupportedCheckpointError(
            f"{directory}: holds {name_some(foreign)} and no safetensors file, the one format that is read: "
            "use the -PT or -Paddle repository of the model"
        )
    raise CheckpointError(f"{directory}: holds no {SINGLE_NAME} and no {INDEX_NAME}")


def refuse_pickle(path: Path) -> None:
    """Raise UnsupportedCheckpointError if the name is that of a pickle."""
    if path.name.endswith(_PICKLES):
        raise UnsupportedCheckpointError(
            f"{path}: is a pickle; loading one can run any code, so it is refused: convert it to safetensors with the "
            "program that made it, or use a repository that has safetensors files"
        )


def _weight_map(path: Path) -> Mapping[str, str]:
    weight_map = read_object(path, _INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must map tensor names to file names")
    for name, file in weight_map.items():
        # a plain name cannot leave the directory; a link of that name may, as the hub's cache links to its blobs
        if isinstance(file, str) and not file.endswith(".safetensors"):
            refuse_pickle(path.parent / file)
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise CheckpointError(
                f"{path}: tensor {name!r}: file {file!r}: must be the plain name of a .safetensors file beside it"
            )
    return weight_map


def _read_sharded(directory: Path) -> WeightFiles:
    index = directory / INDEX_NAME
    weight_map = _weight_map(index)
    files = sorted(set(weight_map.values()))
    if SINGLE_NAME not in files and (directory / SINGLE_NAME).exists():
        raise CheckpointError(
            f"{directory}: holds {SINGLE_NAME} and {INDEX_NAME} that speaks of other files: remove one"
        )
    missing = [name for name in files if not (directory / name).exists()]
    if missing:
        raise CheckpointError(f"{index}: names files that are missing: {name_some(missing)}")
    tensors: dict[str, Located] = {}
    for name in files:
        path = directory / name
        header = read_header(path)
        _check_against_index(path, header, weight_map)
        tensors.update((key, Located(path, entry)) for key, entry in header.tensors.items())
    absent = weight_map.keys() - tensors.keys()
    if absent:
        first = min(absent)
        raise CheckpointError(
            f"{directory / weight_map[first]}: tensors of the index are missing: {name_some(absent)}"
        )
    return WeightFiles(tuple(directory / name for name in files), tensors)


def _check_against_index(path: Path, header: Header, weight_map: Mapping[str, str]) -> None:
    strays = [name for name in header.tensors if weight_map.get(name) != path.name]
    if strays:
        raise CheckpointError(
            f"{path}: holds tensors that {INDEX_NAME} does not place there: {name_some(strays)}"
        )
