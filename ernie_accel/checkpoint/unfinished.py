"""Directories that appear under their name when they are complete, and runs that go on where one was interrupted.

Everything is written to ``<target>.partial`` beside the target. ``journal.jsonl`` there has one line for what is being
made and one for each part of it that is complete and on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ernie_accel.closing import Closing
from ernie_accel.errors import ArgumentError, CheckpointError

__all__ = [
    "JOURNAL_NAME",
    "DiskError",
    "Journal",
    "check_target",
    "partial_path",
    "remove_strays",
    "sync_directory",
]

JOURNAL_NAME = "journal.jsonl"


class DiskError(CheckpointError):
    """The disk refuses: a CheckpointError that says nothing against the checkpoint that is written from."""


def partial_path(target: Path) -> Path:
    """Where an unfinished directory lies."""
    return target.with_name(f"{target.name}.partial")


class Journal(Closing):
    """The journal of an unfinished directory; locked, so that one process at a time goes on with it.

    Attributes:
        lines: One for each finished part, by this run or an interrupted one.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Begin a journal, or go on with the one that lies there; ``identity`` is all that the bytes depend on.

        Raises:
            ArgumentError: An interrupted run made something else, or another process is writing.
            OSError: The disk refuses.
        """
        self.path = directory / JOURNAL_NAME
        self._file = self.path.open("a+b")
        try:
            _lock(self._file, directory)
            self._file.seek(0)
            lines, length = _complete_lines(self._file.read())
            self._file.truncate(length)
            if lines and lines[0] != dict(identity):
                raise ArgumentError(
                    f"{directory}: holds an unfinished directory that was made from another source or with other "
                    "settings: remove it, or use the same ones to finish it"
                )
            self.lines: list[Mapping[str, Any]] = [*lines[1:]]
            if not lines:
                self._write(identity)
        except BaseException:
            self.close()
            raise

    def note(self, line: Mapping[str, Any]) -> None:
        """Add a line; when this returns, it is on disk."""
        self._write(line)
        self.lines.append(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others go on with it. May be called twice."""
        with suppress(OSError):  # what could not be flushed is no complete line
            self._file.close()


def check_target(target: Path) -> None:
    """See that a directory can take that name later, when much work has gone into it.

    Raises:
        ArgumentError: It is no name, or something other than an empty directory has it.
        CheckpointError: The system does not let us look.
    """
    if target.name in ("", "..") or "\0" in str(target):
        raise ArgumentError(f"target={str(target)!r}: must end in the name of a directory to create")
    try:
        taken = target.is_symlink() or (target.exists() and not _is_empty_directory(target))
    except OSError as error:
        raise DiskError(f"{target}: cannot be written: {error.strerror or error}") from error
    if taken:
        raise ArgumentError(
            f"target={str(target)!r}: exists and is not an empty directory; choose a new name"
        )


def remove_strays(directory: Path) -> None:
    """Remove files that a run which was ended by force had not finished."""
    for path in [*directory.rglob(".*.partial")]:
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Have the names of a directory on disk, on systems that can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_empty_directory(path: Path) -> bool:
    """A directory that another can be renamed to: a mount point cannot go."""
    return path.is_dir() and not os.path.ismount(path) and not any(path.iterdir())


def _complete_lines(text: bytes) -> tuple[list[dict[str, Any]], int]:
    """Lines up to the first that is torn, as the machine may have stopped within one; their length in bytes."""
    lines: list[dict[str, Any]] = []
    length = 0
    for line in text.split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        length += len(line) + 1
    return lines, length


def _lock(file: BinaryIO, directory: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows; a second writer then shows at the rename
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArgumentError(f"{directory}: is being written by another process") from None
    except OSError:  # a file system without locks, as on Windows
        return
