"""The temporary directory that a graph is written to before an engine loads it; weights and all, so gigabytes of it.

It is gone when the graph is loaded. What a process leaves that was killed meanwhile, the next one deletes that writes a
graph: a directory is locked by who uses it, and the system takes the lock away with the process.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ernie_accel.errors import BackendError

__all__ = ["no_room", "scratch"]

PREFIX = "ernie-accel-graph-"
FRESH_SECONDS = 60.0
"""A directory so young may not be locked yet."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Make an empty directory, in ``TMPDIR`` if that is set, and delete it at the end.

    Raises:
        BackendError: There is nowhere to make one.
    """
    try:
        _sweep(Path(tempfile.gettempdir()))
        made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise no_room("no directory for temporary files", error) from error
    with made as folder:
        lock = _locked(Path(folder))
        try:
            yield Path(folder)
        finally:
            if lock is not None:
                os.close(lock)


def no_room(where: object, error: OSError) -> BackendError:
    """Return the error that says where a graph could not be written, and why."""
    return BackendError(
        f"{where}: the graph cannot be written: {error.strerror or error}; name a directory with more room in TMPDIR, "
        "or load what 'ernie-accel export' wrote"
    )


def _sweep(parent: Path) -> None:
    """Delete directories of ours whose process is gone."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.lstat().st_mtime < FRESH_SECONDS:
                continue
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a directory of this user; None where another has it, or where the system knows no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
