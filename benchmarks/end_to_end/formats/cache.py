"""Where model files of other engines are kept, and how they get there whole."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

MODELS = Path(__file__).parents[2] / "models"


def cached(name: str, make: Callable[[Path], None], folder: Path = MODELS) -> Path:
    """Return the file or directory of that name, which ``make(path)`` writes if it is not there yet."""
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".half-{name}"
    remove(half)
    print(f"making {path.relative_to(folder.parent)}", file=sys.stderr, flush=True)
    make(half)
    half.rename(path)
    return path


def remove(path: Path) -> None:
    """Remove a file or directory if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
