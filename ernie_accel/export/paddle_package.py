"""Paddle as a guest: which one is installed, and an import of it that leaves the process as it was.

``import paddle`` sets ``OMP_NUM_THREADS=1`` and other variables in the environment, gives the root logger a handler and
the level INFO, adds filters of warnings, and installs C handlers of seven signals, SIGTERM and SIGSEGV among them, over
those of Python and ``faulthandler``. All of that is put back. What stays: Paddle's own loggers (``paddle.*``), a helper
thread, and the OpenMP threads of its first computation.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from typing import Any

from ernie_accel import env
from ernie_accel.errors import BackendError, MissingExtraError
from ernie_accel.interrupts import deferred

__all__ = ["import_paddle", "installed_version", "version_problem"]

OLDEST, NEWEST_MAJOR = (3, 3), 3
DISTRIBUTIONS = ("paddlepaddle", "paddlepaddle-gpu")
QUIET = {"GLOG_minloglevel": "2"}
"""While Paddle is loaded: its C++ side reads this once, and then writes errors only."""

_SIGNALS = 64
_SIGACTION_BYTES = 512
"""More than any platform's ``struct sigaction``, which is saved and put back unread."""

_lock = threading.Lock()


def installed_version() -> str | None:
    """The version of the installed distribution of Paddle, without importing it; None where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def version_problem(version: str) -> str | None:
    """Why that version of Paddle cannot be used, as a sentence; None if it can."""
    parts = version.split(".")[:2]
    numbers = tuple(int(part) if part.isdigit() else 0 for part in parts)
    oldest = ".".join(map(str, OLDEST))
    if numbers < OLDEST:
        return f"Paddle {version} is too old: {oldest} or newer is needed."
    if numbers[0] > NEWEST_MAJOR:
        return f"Paddle {version} is newer than this release knows: it was made for {oldest} up to {NEWEST_MAJOR}.x."
    return None


def import_paddle() -> Any:
    """Return the package ``paddle``.

    Ctrl-C comes through when it is imported: Paddle's own import takes KeyboardInterrupt for a damaged file, and one
    that was cut short cannot be repeated in the same process.

    Raises:
        MissingExtraError: It is not installed.
        BackendError: The installed version cannot be used, or fails to load.
    """
    version = installed_version()
    if version is None:
        raise MissingExtraError.of("paddle", "Paddle Inference")
    if problem := version_problem(version):
        raise BackendError(problem)
    with _lock:
        if "paddle" in sys.modules:
            return sys.modules["paddle"]
        with deferred(), _unchanged_process():
            try:
                import paddle
                import paddle.inference
            except Exception as error:  # a broken installation fails in many ways
                raise BackendError(f"Paddle {version} is installed and does not load: {error}") from error
        return paddle


@contextmanager
def _unchanged_process() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(env.unchanged(QUIET))
        stack.enter_context(_kept_root_logger())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_kept_signal_handlers())
        yield


@contextmanager
def _kept_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Below Python, whose own record of handlers does not change when C code installs others."""
    if os.name != "posix":
        yield
        return
    sigaction = ctypes.CDLL(None).sigaction
    saved = {}
    for number in range(1, min(_SIGNALS, signal.NSIG)):
        action = ctypes.create_string_buffer(_SIGACTION_BYTES)
        if sigaction(number, None, action) == 0:
            saved[number] = action
    try:
        yield
    finally:
        for number, action in saved.items():
            sigaction(number, action, None)
