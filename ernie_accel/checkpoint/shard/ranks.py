"""The directories of a checkpoint that was split: finding them, and seeing that they belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ernie_accel.checkpoint.files import SHARD_NAME
from ernie_accel.checkpoint.shard.blueprint import Blueprint
from ernie_accel.checkpoint.shard.manifest import Manifest, rank_name, read_manifest
from ernie_accel.checkpoint.shard.streams import check_file
from ernie_accel.checkpoint.small_files import COPIED
from ernie_accel.checkpoint.strict_json import read_bytes
from ernie_accel.errors import CheckpointError

__all__ = ["Rank", "check_small_files", "find_ranks", "open_rank", "verify_rank"]

_LIMIT = 1 << 30


class Rank(NamedTuple):
    """A rank's directory and what it says of itself."""

    directory: Path
    manifest: Manifest


def open_rank(directory: Path) -> tuple[Rank, Blueprint]:
    """Read what a rank's directory says of itself, and work out what it must hold.

    Raises:
        CheckpointError: It is damaged, or says that it holds something else.
    """
    rank = Rank(directory, read_manifest(directory))
    blueprint = rank.manifest.blueprint(directory)
    _check_names(rank, blueprint)
    return rank, blueprint


def find_ranks(directory: Path) -> tuple[list[Rank], Blueprint]:
    """Find all ranks of a checkpoint that was split.

    Raises:
        CheckpointError: There are none, one is missing, or they are not of one checkpoint.
    """
    found = sorted(item for item in directory.glob("rank-*-of-*") if (item / SHARD_NAME).exists())
    if not found:
        raise CheckpointError(
            f"{directory}: holds no ranks of a checkpoint that was split (rank-00-of-04/{SHARD_NAME} and so on): "
            "give the directory that ernie-accel shard has written"
        )
    first, blueprint = open_rank(found[0])
    ranks = [first, *(Rank(item, read_manifest(item)) for item in found[1:])]
    for rank in ranks:
        _check_alike(first, rank)
        _check_names(rank, blueprint)
    count = blueprint.division.ranks
    missing = [rank_name(n, count) for n in range(count) if n not in {item.manifest.rank for item in ranks}]
    if missing:
        raise CheckpointError(
            f"{directory}: ranks are missing: {', '.join(missing)}; put them there, or split the checkpoint again "
            "into a new directory"
        )
    return ranks, blueprint


def _check_alike(first: Rank, rank: Rank) -> None:
    one, other = first.manifest, rank.manifest
    expected = rank_name(other.rank, other.division.ranks)
    if rank.directory.name != expected:
        raise CheckpointError(f"{rank.directory}: says that it is {expected}: ranks are mixed up; name it so")
    same = one.division == other.division and one.file_bytes == other.file_bytes
    if not same or one.source.sha256 != other.source.sha256:
        raise CheckpointError(
            f"{rank.directory}: is a rank of {_words(other)}, {first.directory.name} one of {_words(one)}: keep the "
            "ranks of one division in a directory"
        )


def _words(manifest: Manifest) -> str:
    division, source = manifest.division, manifest.source
    return f"{source.name} ({source.sha256[:16]}, {division.ranks} ranks, experts {division.experts})"


def _check_names(rank: Rank, blueprint: Blueprint) -> None:
    """Every tensor of the source, and every part that the rank must have, has its hash; and nothing else."""
    manifest = rank.manifest
    held = {item.tensor.name for group in blueprint.groups for item in group.held(manifest.rank)[1]}
    whole = {tensor.name for group in blueprint.groups for tensor in group.tensors}
    for what, names, expected in (
        ("tensors", manifest.tensors, held),
        ("source", manifest.source.tensors, whole),
    ):
        odd = sorted(set(names) ^ expected)
        if odd:
            raise CheckpointError(
                f"{rank.directory / SHARD_NAME}: {what}: {odd[0]!r} must have a hash if the rank has it, and only then"
            )


def check_small_files(rank: Rank) -> None:
    """Raise CheckpointError unless configuration and tokenizer files are what was written."""
    recorded = rank.manifest.source.small_files
    for name in COPIED:
        path = rank.directory / name
        found = hashlib.sha256(read_bytes(path, _LIMIT)).hexdigest() if path.exists() else None
        if found != recorded.get(name):
            raise CheckpointError(f"{path}: differs from what was written with the weights")


def verify_rank(rank: Rank, blueprint: Blueprint, advance: Callable[[int], None]) -> None:
    """Read all of a rank's directory and compare it with its hashes.

    Raises:
        CheckpointError: Anything differs.
    """
    check_small_files(rank)
    digests = rank.manifest.tensors
    for group in blueprint.groups:
        text, held = group.held(rank.manifest.rank)
        if held:
            tensors = [(item.tensor.name, item.nbytes, digests[item.tensor.name]) for item in held]
            check_file(rank.directory / group.name, text, tensors, advance)
