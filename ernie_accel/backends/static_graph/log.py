"""What a child process writes to its standard output and error, kept in memory without a name."""

from __future__ import annotations

import os
from contextlib import suppress

from ernie_accel.backends.static_graph.memory import descriptor

__all__ = ["Log"]

KEPT_BYTES = 1 << 16
LIMIT_BYTES = 1 << 20


class Log:
    """A file that only grows while it is written to, and that is cut when somebody looks and it has become long."""

    def __init__(self) -> None:
        self.fd = descriptor(0)
        self._seen = 0
        with suppress(ImportError, OSError):  # without it both outputs still share one position
            import fcntl

            fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)

    def news(self) -> str:
        """Return what was written since the last call, of very much the end."""
        size = os.fstat(self.fd).st_size
        if size == self._seen:
            return ""
        text = self._read(self._seen, size)
        self._seen = size
        if size > LIMIT_BYTES:
            os.ftruncate(self.fd, 0)
            self._seen = 0
        return text

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines that are not empty."""
        text = self._read(0, os.fstat(self.fd).st_size)
        return tuple(line for line in text.splitlines() if line.strip())[-lines:]

    def close(self) -> None:
        """Give the memory back."""
        with suppress(OSError):
            os.close(self.fd)

    def _read(self, start: int, end: int) -> str:
        start = max(start, end - KEPT_BYTES)
        return os.pread(self.fd, end - start, start).decode("utf-8", "replace")
