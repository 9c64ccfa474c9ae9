"""What ``None`` in SamplingParams means for one checkpoint: the values of its generation_config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ernie_accel.backends.engine import LARGEST_SEED
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.types import SamplingParams

__all__ = ["NEUTRAL", "checkpoint_defaults", "file_end_ids", "settle"]

NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Values that leave the model's own distribution as it is."""


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def file_end_ids(generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids that generation_config.json says end a text: one, several, or none.

    Raises:
        CheckpointError: It says something else.
    """
    value = generation_config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(map(_is_id, ids)):
        raise CheckpointError(
            f"generation_config.json: eos_token_id={value!r}: must be a token id or a list of them; correct the file"
        )
    return tuple(ids)


def checkpoint_defaults(generation_config: Mapping[str, Any]) -> SamplingParams:
    """Return the checkpoint's defaults, every number set. ``do_sample`` false is temperature 0, absent is sampling.

    Raises:
        CheckpointError: generation_config.json holds a value that cannot be used.
    """
    given = {name: generation_config.get(name) for name in NEUTRAL}
    values: dict[str, Any] = {name: NEUTRAL[name] if v is None else v for name, v in given.items()}
    sample = generation_config.get("do_sample")
    if not (sample is None or isinstance(sample, bool)):
        raise CheckpointError(
            f"generation_config.json: do_sample={sample!r}: must be true or false; correct the file"
        )
    if sample is False:
        values["temperature"] = 0.0
    try:
        return SamplingParams(**values)
    except ArgumentError as error:
        raise CheckpointError(f"generation_config.json: {error}; correct the file") from error


def settle(
    params: SamplingParams, defaults: SamplingParams, largest_seed: int = LARGEST_SEED
) -> SamplingParams:
    """Return ``params`` with every None replaced, a seed drawn where none is given.

    Where ``defaults`` has None too, an engine with a checkpoint of its own decides.
    """
    missing = {name: getattr(defaults, name) for name in NEUTRAL if getattr(params, name) is None}
    seed = params.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little") % (largest_seed + 1)
    return replace(params, seed=seed, **missing)
