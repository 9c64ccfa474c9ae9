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


def resident(status: Path = _STATUS, *, children: bool = False) -> Resident:
    """Return what this process has in memory now; zeros where the system doesn't tell.

    With ``children`` the anonymous pages of the processes that it started count too; what they share with it is
    counted once, here.
    """
    own = _values(status)
    theirs = [_values(child / "status") for child in _children(status.parent)] if children else []
    anonymous = own["RssAnon"] + own["RssShmem"] + sum(values["RssAnon"] for values in theirs)
    return Resident(anonymous, own["RssFile"] + sum(values["RssFile"] for values in theirs))


def _values(status: Path) -> dict[str, int]:
    values = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:  # there is no such system, or the process has ended
        return values
    for line in lines:
        key, _, rest = line.partition(":")
        if key in values:
            values[key] = 1024 * int(rest.split()[0])
    return values


def _children(process: Path) -> list[Path]:
    """Directories of all processes that a process started, and that those started."""
    found: list[Path] = []
    try:
        lists = [task.read_text(encoding="utf-8") for task in process.glob("task/*/children")]
    except OSError:  # it ends just now
        return []
    for number in " ".join(lists).split():
        child = Path("/proc") / number
        found += [child, *_children(child)]
    return found


class MemoryWatch:
    """The peak of anonymous memory over a ``with`` block, as growth over what there was at its beginning.

    The system's own high-water mark counts pages of mapped files too, so a thread looks every two milliseconds instead.
    ``before`` takes the beginning from somewhere else; with ``children`` the processes that this one starts count too.
    """

    def __init__(self, before: Resident | None = None, *, children: bool = False) -> None:
        self._children = children
        self.before = before or resident(children=children)
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
        now = resident(children=self._children)
        self.peak = max(self.peak, now.own - self.before.own)
        self.mapped = max(self.mapped, now.mapped - self.before.mapped)
