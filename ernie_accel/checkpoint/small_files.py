"""What lies beside the weights: configuration, tokenizer and licence, for directories that are made of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ernie_accel.checkpoint.base import Checkpoint

__all__ = ["small_files"]

_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)


def small_files(checkpoint: Checkpoint) -> dict[str, Path | bytes]:
    """Configuration and tokenizer files as they are; of a virtual checkpoint what it says."""
    if checkpoint.directory is not None:
        paths = {name: checkpoint.directory / name for name in _COPIED}
        return {name: path for name, path in paths.items() if path.is_file()}
    files: dict[str, Path | bytes] = {"config.json": _json(checkpoint.config.to_dict())}
    if checkpoint.generation_config:
        files["generation_config.json"] = _json(checkpoint.generation_config)
    return files


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
