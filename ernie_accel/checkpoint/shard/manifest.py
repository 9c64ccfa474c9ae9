"""``shard.json``: what a rank's directory says of itself and of what was divided.

It holds the headers of the source word for word and a hash of every tensor, whole and in parts, so that the source can
be put together again and compared with what it was. Nothing in it is trusted: what a rank must hold is worked out anew
from headers, configuration and rules.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ernie_accel.architecture import ModelConfig
from ernie_accel.architecture.split import RULES_VERSION, Division, ExpertSplit
from ernie_accel.checkpoint.files import CONFIG_NAME, SHARD_NAME
from ernie_accel.checkpoint.shard.blueprint import Blueprint, Held
from ernie_accel.checkpoint.shard.source import SourceFile, source_file
from ernie_accel.checkpoint.small_files import COPIED
from ernie_accel.checkpoint.strict_json import parse_object, read_bytes
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError

__all__ = ["FORMAT", "Manifest", "SourceRecord", "encode_manifest", "rank_name", "read_manifest"]

FORMAT = "ernie-accel-shard"

_LIMIT = 256 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")


def rank_name(rank: int, ranks: int) -> str:
    """Name of a rank's directory."""
    return f"rank-{rank:02d}-of-{ranks:02d}"


@dataclass(frozen=True)
class SourceRecord:
    """What was divided.

    Attributes:
        name: What it was called.
        files: Its weight files, by what they begin with.
        index: What its index held, None where it had none.
        tensors: SHA-256 of every tensor.
        small_files: SHA-256 of configuration and tokenizer files.
    """

    name: str
    files: tuple[SourceFile, ...]
    index: str | None
    tensors: Mapping[str, str]
    small_files: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Names the source by all of its bytes."""
        headers = [[file.name, hashlib.sha256(file.text).hexdigest()] for file in self.files]
        values = [headers, self.index, self.tensors, self.small_files]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """One rank; ``tensors`` are the SHA-256 of its parts, ``file_bytes`` what its files were measured by."""

    rank: int
    division: Division
    file_bytes: int
    source: SourceRecord
    tensors: Mapping[str, str]

    def blueprint(self, directory: Path) -> Blueprint:
        """Work out what all ranks hold; ``directory`` is the rank's, whose config.json is compared with its hash.

        Raises:
            CheckpointError: The configuration is not the one recorded, or does not fit the headers.
        """
        content = read_bytes(directory / CONFIG_NAME, _LIMIT)
        if hashlib.sha256(content).hexdigest() != self.source.small_files.get(CONFIG_NAME):
            raise CheckpointError(
                f"{directory / CONFIG_NAME}: differs from what was written with the weights"
            )
        config = ModelConfig.from_dict(
            parse_object(content, str(directory / CONFIG_NAME)), source=CONFIG_NAME
        )
        return Blueprint(config, self.source.files, self.division, directory, self.file_bytes)


def encode_manifest(manifest: Manifest, held: Sequence[tuple[str, Held]]) -> bytes:
    """Return the file; ``held`` are the rank's parts with the files that they lie in."""
    from importlib.metadata import version

    source = manifest.source
    values = {
        "format": FORMAT,
        "rules": RULES_VERSION,
        "library": version("ernie-accel"),
        "rank": manifest.rank,
        "ranks": manifest.division.ranks,
        "experts": manifest.division.experts,
        "file_bytes": manifest.file_bytes,
        "source": {
            "name": source.name,
            "sha256": source.sha256,
            "files": {file.name: file.text[8:].decode() for file in source.files},
            "index": source.index,
            "tensors": source.tensors,
            "small_files": source.small_files,
        },
        "tensors": {
            item.tensor.name: {
                "file": file,
                "axis": item.slices.axis,
                "ranges": item.slices.ranges,
                "padding": item.slices.padding,
                "sha256": manifest.tensors[item.tensor.name],
            }
            for file, item in held
        },
    }
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(directory: Path) -> Manifest:
    """Read ``shard.json`` of a rank's directory.

    Raises:
        CheckpointError: It is missing or damaged, or contradicts itself.
        UnsupportedCheckpointError: Another version of this library wrote it by other rules.
    """
    path = directory / SHARD_NAME
    if not path.exists():
        raise CheckpointError(f"{path}: is missing: give a directory that ernie-accel shard has written")
    values = _Values(parse_object(read_bytes(path, _LIMIT), str(path)), str(path))
    if values.get("format", str) != FORMAT:
        raise CheckpointError(f"{path}: format={values.get('format', str)!r}: must be {FORMAT!r}")
    if values.get("rules", int) != RULES_VERSION:
        raise UnsupportedCheckpointError(
            f"{path}: was written by rules {values.get('rules', int)}, this version knows {RULES_VERSION}: split the "
            "checkpoint again"
        )
    rank, ranks, experts = values.get("rank", int), values.get("ranks", int), values.get("experts", str)
    if not 0 <= rank < ranks or experts not in get_args(ExpertSplit) or values.get("file_bytes", int) < 1:
        raise values.error(f"rank={rank}, ranks={ranks}, experts={experts!r} are impossible")
    source = _read_source(values.nested("source"))
    if source.sha256 != values.nested("source").get("sha256", str):
        raise values.error("what it says of the source does not have the hash that it gives")
    tensors = {name: item.digest("sha256") for name, item in values.nested("tensors").each()}
    division = Division(ranks, "cut" if experts == "cut" else "whole")
    return Manifest(rank, division, values.get("file_bytes", int), source, tensors)


def _read_source(values: _Values) -> SourceRecord:
    files = []
    for name, text in values.nested("files").strings():
        if not _FILE_NAME.fullmatch(name):
            raise values.error(f"source file {name!r} is not the plain name of a .safetensors file")
        content = text.encode("utf-8", "surrogatepass")
        files.append(source_file(name, len(content).to_bytes(8, "little") + content, values.where))
    small = dict(values.nested("small_files").digests())
    unknown = sorted(set(small) - set(COPIED))
    if unknown:
        raise values.error(f"file {unknown[0]!r} is none that is copied")
    index = None if values.has_null("index") else values.get("index", str)
    return SourceRecord(
        values.get("name", str), tuple(files), index, dict(values.nested("tensors").digests()), small
    )


class _Values:
    """Typed reading of a JSON object; errors name the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self.where = values, where

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {message}")

    def has_null(self, key: str) -> bool:
        return self._values.get(key) is None

    def get(self, key: str, kind: type[Any]) -> Any:
        value = self._values.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f"{key}: must be given, as {kind.__name__}")
        return value

    def nested(self, key: str) -> _Values:
        return _Values(self.get(key, dict), self.where)

    def digest(self, key: str) -> str:
        value: str = self.get(key, str)
        if not _DIGEST.fullmatch(value):
            raise self.error(f"{key}={value!r}: must be a SHA-256")
        return value

    def each(self) -> list[tuple[str, _Values]]:
        return [(name, self.nested(name)) for name in self._values]

    def strings(self) -> list[tuple[str, str]]:
        return [(name, self.get(name, str)) for name in self._values]

    def digests(self) -> list[tuple[str, str]]:
        return [(name, self.digest(name)) for name in self._values]
