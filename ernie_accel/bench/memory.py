"""How much memory a process takes: what is its own, and what are pages of mapped files, which others share."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

__all__ = ["MemoryWatch", "Resident", "resident"]

_STATUS = Path("/proc/self/status")
_SECONDS = 0.002


@dataclass(frozen=True)
class Resident:
    """Bytes in memory: anonymous ones, and pages of mapped files."""

    own: int
    mapped: int


def resident(status: Path = _STATUS) -> Resident:
    """Return what this process has in memory now; zeros where the system doesn't tell."""
    values = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            key, _, rest = line.partition(":")
            if key in values:
                values[key] = 1024 * int(rest.split()[0])
    return Resident(values["RssAnon"] + values["RssShmem"], values["RssFile"])


class MemoryWatch:
    """The peak of anonymous memory over a ``with`` block, as growth over what there was at its beginning.

    The system's own high-water mark counts pages of mapped files too, so a thread looks every two milliseconds instead.
    ``before`` takes the beginning from somewhere else.
    """

    def __init__(self, before: Resident | None = None) -> None:
        self.before = before or resident()
        self.peak = 0
        self.mapped = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="ernie_accel memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._note()

    def _look(self) -> None:
        while not self._stop.wait(_SECONDS):
            self._note()

    def _note(self) -> None:
        now = resident()
        self.peak = max(self.peak, now.own - self.before.own)
        self.mapped = max(self.mapped, now.mapped - self.before.mapped)
