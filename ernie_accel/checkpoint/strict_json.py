"""JSON as RFC 8259 has it: no name twice in an object, no NaN, bounded size; every failure is a CheckpointError."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ernie_accel.errors import CheckpointError

__all__ = ["check_regular_file", "encode_json", "parse_object", "read_bytes", "read_object"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the name {key!r} appears twice")
        result[key] = value
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def parse_object(text: bytes, source: str) -> dict[str, Any]:
    """Parse bytes that must hold one JSON object; ``source`` is what an error calls them."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    # ValueError covers JSON, UTF-8 and integers of more digits than Python converts
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: must hold one JSON object, holds {type(value).__name__}")
    return value


def encode_json(values: Mapping[str, Any]) -> bytes:
    """Return a JSON file for people and programs."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def check_regular_file(path: Path) -> None:
    """Raise unless the path is a file (or a link to one): a pipe of that name would block a reader for ever."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not regular:
        raise CheckpointError(f"{path}: is not a regular file")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes. Raises CheckpointError where it is larger or cannot be read."""
    check_regular_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise CheckpointError(f"{path}: is larger than {limit} bytes")
    return content


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """Read a JSON file of at most ``limit`` bytes."""
    return parse_object(read_bytes(path, limit), str(path))
