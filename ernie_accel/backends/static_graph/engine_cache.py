"""The file in which a TensorRT engine is kept: made under another name first, and never taken for another model's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ernie_accel.checkpoint.writer import replace_file
from ernie_accel.errors import ArgumentError

__all__ = ["EngineCache"]


class EngineCache:
    """One such file, and the note beside it that says what it was built from.

    Args:
        file: The engine; need not exist.
        graph: The ONNX file.
        settings: What else the engine depends on, plain values.
        foreign: Whether somebody else built the engine, so that there is no note.

    Raises:
        ArgumentError: The engine exists and belongs to something else.
    """

    def __init__(self, file: Path, graph: Path, settings: Mapping[str, Any], *, foreign: bool) -> None:
        self._file = file.expanduser().absolute()
        self._note = self._file.with_name(self._file.name + ".json")
        self._partial = self._file.with_name(f"{self._file.name}.{os.getpid()}.partial")
        self._made_of = {"graph": _sha256(graph), **settings}
        self._exists = self._file.exists()
        if self._exists and not foreign:
            self._check()
        if not self._exists:
            with self._told():
                self._file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> str:
        """What the runtime is told: the engine, or where to write one."""
        return str(self._file if self._exists else self._partial)

    def keep(self) -> None:
        """Give a new engine its name. The note comes first: an engine without one would be refused."""
        if self._exists or not self._partial.exists():
            return
        text = json.dumps(self._made_of, indent=1).encode()
        with self._told():
            replace_file(self._note, lambda stream: stream.write(text))
            os.replace(self._partial, self._file)

    def discard(self) -> None:
        """Remove what a failed building left."""
        with suppress(OSError):
            self._partial.unlink()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArgumentError(
                f"cache_file={str(self._file)!r}: cannot be written: {error.strerror or error}; name another file"
            ) from error

    def _check(self) -> None:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            note = None
        if note is None:
            raise ArgumentError(
                f"cache_file={str(self._file)!r}: the file exists and {self._note.name}, which says what it was built "
                "from, does not; name another file, or delete it"
            )
        different = [name for name, value in self._made_of.items() if note.get(name) != value]
        if different:
            raise ArgumentError(
                f"cache_file={str(self._file)!r}: the engine was built with another {', '.join(different)}; name "
                "another file, or delete it"
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
