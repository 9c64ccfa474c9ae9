"""What lies beside the weights: configuration, tokenizer and licence, for directories that are made of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.strict_json import encode_json

__all__ = ["COPIED", "paths_of_small_files", "small_files"]

COPIED = (
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
"""Their names."""


def small_files(checkpoint: Checkpoint) -> dict[str, Path | bytes]:
    """Configuration and tokenizer files as they are; of a virtual checkpoint what it says."""
    if checkpoint.directory is not None:
        return {**paths_of_small_files(checkpoint.directory)}
    files: dict[str, Path | bytes] = {"config.json": encode_json(checkpoint.config.to_dict())}
    if checkpoint.generation_config:
        files["generation_config.json"] = encode_json(checkpoint.generation_config)
    return files


def paths_of_small_files(directory: Path) -> dict[str, Path]:
    """Those that a directory has, by name."""
    paths = {name: directory / name for name in COPIED}
    return {name: path for name, path in paths.items() if path.is_file()}
