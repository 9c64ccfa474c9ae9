"""Which steps of a ragged batch are computed together: a little padding costs less than reading the weights again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Step
from ernie_accel.backends.static_graph.cache import CachedSequence

__all__ = ["Item", "make_groups"]

FREE_ROWS = 32
"""So many rows cost hardly more than one: the weights have to be read for either."""

FREE_PLACES = 4096
"""The same for places of the past."""


@dataclass(frozen=True)
class Item:
    """One step of a batch: its place there, its sequence and checked ids."""

    index: int
    step: Step
    sequence: CachedSequence
    ids: npt.NDArray[np.int32]


def make_groups(items: Sequence[Item], most: int | None = None) -> list[list[Item]]:
    """Divide a batch into parts that pad little: rows to the longest step, places to the longest past.

    A part has at most ``most`` steps; None is no limit.
    """
    groups: list[list[Item]] = []
    for item in sorted(items, key=lambda i: (len(i.ids), i.sequence.length), reverse=True):
        for group in groups:
            if len(group) != most and _fits([*group, item]):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _fits(group: list[Item]) -> bool:
    rows = [len(item.ids) for item in group]
    places = [item.sequence.length for item in group]
    padded_rows, padded_places = len(group) * max(rows), len(group) * max(places)
    return padded_rows <= max(FREE_ROWS, 1.25 * sum(rows)) and padded_places <= FREE_PLACES + 1.5 * sum(
        places
    )
