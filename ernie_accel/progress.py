"""The ``progress`` argument of slow calls: a bar, a callback or nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ernie_accel.errors import ArgumentError
from ernie_accel.types import Progress

__all__ = ["Counter", "check_progress", "reporting"]


def check_progress(progress: object) -> None:
    """Raise ArgumentError unless it is what ``reporting`` takes."""
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise ArgumentError(
            f"progress={progress!r}: must be None, True, False or a callable(stage, done, total)"
        )


@contextmanager
def reporting(progress: bool | Progress | None, *, unit: str = "B") -> Iterator[Progress | None]:
    """Give the callback that ``progress`` stands for, and remove its bar afterwards.

    Args:
        progress: None shows a bar on stderr if that is a terminal, or in a notebook; True always; False never; a
            callable is called as ``progress(stage, done, total)``.
        unit: What is counted; "B" is written with prefixes such as Ki.

    Raises:
        ArgumentError: It is something else.
    """
    check_progress(progress)
    if callable(progress):
        yield progress
    elif progress or (progress is None and (_in_terminal() or _in_notebook())):
        bars = _Bars(unit)
        try:
            yield bars
        finally:
            bars.close()
    else:
        yield None


class Counter:
    """Counts up to a total and reports it, where there is somebody to report to."""

    def __init__(self, progress: Progress | None, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0

    def add(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        if self._progress is not None:
            self._progress(self._stage, self._done, self._total)


class _Bars:
    """One bar for each stage, one after the other."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar = stage, _bar(stage, total, self._unit)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(stage: str, total: int, unit: str) -> Any:
    options: dict[str, Any] = {
        "desc": stage,
        "total": total,
        "unit": unit,
        "unit_scale": unit == "B",
        "unit_divisor": 1024,
        "leave": False,
    }
    if not _in_notebook():
        from tqdm import tqdm

        return tqdm(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is missing: the plain bar then does
        from tqdm.auto import tqdm as notebook_tqdm

    return notebook_tqdm(**options)


def _in_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    kernel = shell.get_ipython() if shell is not None else None
    return kernel is not None and "IPKernelApp" in kernel.config
