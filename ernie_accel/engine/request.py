"""What the faces and an engine exchange (``backends/engine.py`` has the contract), and checks of what callers give."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.engine import Engine, Handle, Request, Turn, alternative_seed, late
from ernie_accel.errors import ArgumentError

__all__ = [
    "Engine",
    "Handle",
    "Request",
    "Turn",
    "alternative_seed",
    "check_ids",
    "check_priority",
    "deadline_of",
    "late",
]


def check_priority(priority: object) -> None:
    """Raise ArgumentError unless it is a whole number."""
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise ArgumentError(f"priority={priority!r}: must be a whole number; higher ones come first")


def deadline_of(timeout: float | None) -> float:
    """Return the ``time.monotonic()`` at which a timeout that begins now is over; infinity for None.

    Raises:
        ArgumentError: It is no number of seconds above 0.
    """
    if timeout is None:
        return math.inf
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
        raise ArgumentError(f"timeout={timeout!r}: must be None or a number of seconds above 0")
    return time.monotonic() + timeout


def check_ids(token_ids: Sequence[int] | npt.NDArray[np.integer], vocab_size: int) -> tuple[int, ...]:
    """Return the ids as plain ints. Raises ArgumentError, naming position and id, for any outside [0, vocab_size)."""
    flat = token_ids.ndim == 1 if isinstance(token_ids, np.ndarray) else isinstance(token_ids, Sequence)
    if not flat or isinstance(token_ids, (str, bytes, bytearray)):
        raise ArgumentError(f"token_ids={token_ids!r}: must be a list of token ids, or a flat array of them")
    if len(token_ids) == 0:
        raise ArgumentError(
            "the prompt is empty: give at least one token; [tokenizer.bos_id] begins a new text"
        )
    for position, value in enumerate(token_ids):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < vocab_size:
            raise ArgumentError(
                f"token_ids[{position}]={value!r}: must be a whole number from 0 to {vocab_size - 1}"
            )
    return tuple(int(value) for value in token_ids)
