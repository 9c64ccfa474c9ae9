"""Finding the tensors of multi-token prediction, which lie beside the model's own and are read only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ernie_accel.architecture import ModelConfig, multi_token_specs
from ernie_accel.architecture.multi_token import EMB_NORM, MTP_PREFIX, PROJECTION, check_multi_token
from ernie_accel.checkpoint.base import Checkpoint, has_multi_token
from ernie_accel.checkpoint.files import name_some
from ernie_accel.checkpoint.layouts import Layout, bare_name, full_name, stored_parts
from ernie_accel.checkpoint.plan import Placed, Stored, check_tensor
from ernie_accel.errors import CheckpointError

__all__ = ["is_multi_token", "place_multi_token", "require_multi_token"]


def require_multi_token(checkpoint: Checkpoint) -> None:
    """Raise, saying what is missing, unless there is multi-token prediction. Raises as ``place_multi_token``."""
    name = checkpoint.info.name
    check_multi_token(checkpoint.config, name)
    if not has_multi_token(checkpoint):
        raise CheckpointError(
            f"{name}: holds no tensors of multi-token prediction ({MTP_PREFIX}*), although config.json speaks of them; "
            "use speculation='lookup' or 'off', or a repository (or a directory quantized from one) that has them"
        )
    checkpoint.tensor(EMB_NORM)  # all twelve are checked


def is_multi_token(name: str) -> bool:
    """Whether a stored tensor, or one of the architecture, belongs to multi-token prediction."""
    return bare_name(name).startswith(bare_name(MTP_PREFIX))


def place_multi_token(
    config: ModelConfig, stored: Stored, layout: Layout, directory: Path
) -> Mapping[str, Placed]:
    """Say where each of the twelve tensors lies.

    Raises:
        CheckpointError: config.json speaks of none, or one is missing, is left over, or has the wrong shape or dtype.
        UnsupportedCheckpointError: There is more than one layer of it.
    """
    check_multi_token(config, str(directory))
    by_bare = {bare_name(name): name for name in sorted(stored) if is_multi_token(name)}
    specs = multi_token_specs(config)
    parts = stored_parts(specs, layout)
    wanted = {part.stored for part in parts.values()}
    missing = {full_name(bare, layout) for bare in wanted - by_bare.keys()}
    if missing:
        raise CheckpointError(
            f"{directory}: misses tensors of multi-token prediction: {name_some(missing)}; use "
            "speculation='lookup' or 'off'"
        )
    left_over = {by_bare[bare] for bare in by_bare.keys() - wanted}
    if left_over:
        raise CheckpointError(
            f"{directory}: holds tensors that multi-token prediction does not have: {name_some(left_over)}"
        )
    placed = {
        name: Placed(by_bare[part.stored], stored[by_bare[part.stored]], part) for name, part in parts.items()
    }
    placed[PROJECTION] = _either_way(placed[PROJECTION])
    for name, item in placed.items():
        check_tensor(specs[name], item)
    return placed


def _either_way(projection: Placed) -> Placed:
    """The official converter does not name this matrix, so it may lie both ways; being [H, 2H] it says which."""
    part = projection.part
    if projection.located.entry.shape != part.shape[::-1]:
        return projection
    turned = part._replace(shape=part.shape[::-1], transposed=not part.transposed)
    return projection._replace(part=turned)
