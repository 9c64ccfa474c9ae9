"""A process group of ours, from its start to its end: nothing of it outlives ``close``, this process, or a failure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ernie_accel import env
from ernie_accel.errors import BackendProcessError

__all__ = ["Group"]

GRACE_SECONDS = 10.0
"""How long a worker that was told to close may take over it."""
ENDING_SECONDS = 30.0
"""Longer than grace and killing take together."""
LINES = 30
"""Of each log, in errors."""
LONGEST_LINE = 64 << 20
MARK = "ERNIE_ACCEL_GROUP"
OWN_LOG = "group.log"

_HERE = Path(__file__).parent


class Group:
    """A supervisor, the worker that it starts, and whatever that starts.

    The worker ends when the socket is closed; the supervisor ends everything when the worker has ended or when the pipe
    to it is closed, which the end of this process does too. If the supervisor itself was killed, the mark in the
    environment of its descendants finds them.

    Args:
        worker: The command; the number of its socket is appended.
        environment: Variables beside those of this process.
        logs: Where its output goes, in ``group.log``; None: a temporary directory, removed by ``close`` unless it is to
            be kept.
        scratch_variables: Of the environment, which tell the group a directory for temporary files; it is removed with
            the group in any case.
        log_variable: Of the environment, which tells the worker that directory.
        grace: Seconds that the worker may take to end by itself.

    Attributes:
        socket: Connected with the worker's. Lines of JSON.
        logs: The directory.
        pid: Of the supervisor.
    """

    def __init__(
        self,
        worker: Sequence[str],
        *,
        environment: Mapping[str, str],
        logs: Path | None = None,
        log_variable: str | None = None,
        scratch_variables: Sequence[str] = ("TMPDIR",),
        grace: float = GRACE_SECONDS,
    ) -> None:
        home = _home()
        self._scratch = home / "tmp"
        self._temporary = [home]
        self.logs = home / "log" if logs is None else logs
        try:
            _make(self.logs)
        except BaseException:
            _remove(self._temporary)
            raise
        mark = uuid.uuid4().hex
        further = {**dict.fromkeys(scratch_variables, str(self._scratch)), **environment, MARK: mark}
        if log_variable is not None:
            further.setdefault(log_variable, str(self.logs))
        self.socket, theirs = socket.socketpair()
        reading, self._lifeline = os.pipe()
        supervisor = [
            sys.executable,
            "-I",
            "-S",
            str(_HERE / "supervise.py"),
            str(theirs.fileno()),
            str(grace),
            str(self._scratch),
            str(home),
        ]
        try:
            with (self.logs / OWN_LOG).open("ab") as log:
                self._process = subprocess.Popen(
                    [*supervisor, *worker, str(theirs.fileno())],
                    stdin=reading,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                    env=env.inherited(further, interpreter=worker[0]),
                    start_new_session=True,
                )
        except BaseException as error:
            os.close(self._lifeline)
            self.socket.close()
            _remove(self._temporary)
            if isinstance(error, OSError):
                raise BackendProcessError(f"the process group does not start: {error}") from error
            raise
        finally:
            theirs.close()
            os.close(reading)
        self.pid = self._process.pid
        self._end = weakref.finalize(
            self, _end, self._process, self.socket, self._lifeline, mark, os.getpid(), self._temporary
        )

    def exit_code(self) -> int | None:
        """What the worker ended with, negative for a signal; None while the group lives."""
        code = self._process.poll()
        return None if code is None else 128 - code if code > 128 else code

    def wait(self, seconds: float) -> int | None:
        """As ``exit_code``, after waiting for an end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.exit_code()

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a line to the worker; for use before anybody else reads and writes the socket."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def log(self) -> tuple[str, ...]:
        """Return the last lines of its output, and of each ``workerlog``, where the causes of failures are."""
        lines: list[str] = []
        for path in [self.logs / OWN_LOG, *sorted(self.logs.rglob("workerlog.*"))]:
            tail = _tail(path)
            if tail:
                lines += [f"[{path.name}]", *tail]
        return tuple(lines)

    def failure(self, what: str) -> BackendProcessError:
        """Return an error that says what happened, with exit code and log."""
        code, log = self.exit_code(), self.log()
        self._keep_logs()  # whoever reads the message may want to look there
        ended = "" if code is None else f" (it {_described(code)})"
        shown = "".join(f"\n  {line}" for line in log) or " it has written nothing"
        return BackendProcessError(
            f"{what}{ended}; its logs are in {self.logs}, their last lines:{shown}", exit_code=code, log=log
        )

    def close(self, *, keep_logs: bool = False, at_once: bool = False) -> None:
        """End every process of the group, and wait for that; may be called twice.

        Args:
            keep_logs: Leave a temporary directory.
            at_once: Give the worker no time to end by itself.
        """
        if keep_logs:
            self._keep_logs()
        if self._end.alive and at_once:
            with contextlib.suppress(OSError):
                os.write(self._lifeline, b"!")
        self._end()

    def _keep_logs(self) -> None:
        if self._scratch.parent in self.logs.parents:
            self._temporary[:] = [self._scratch]


def _home() -> Path:
    """Make the directory of everything temporary, with one in it for what the group leaves there."""
    try:
        home = Path(tempfile.mkdtemp(prefix="ernie_accel-"))
        (home / "tmp").mkdir()
    except OSError as error:
        raise BackendProcessError(
            f"{tempfile.tempdir}: temporary files of the process group cannot go there: {error.strerror or error}; "
            "name a directory in TMPDIR"
        ) from error
    return home


def _make(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendProcessError(
            f"{logs}: logs of the process group cannot go there: {error.strerror or error}; "
            "give another directory: FastDeployOptions(log_directory=...)"
        ) from error


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _end(
    process: subprocess.Popen[bytes],
    connection: socket.socket,
    lifeline: int,
    mark: str,
    owner: int,
    temporary: list[Path],
) -> None:
    """End the group; a forked child only forgets it."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    os.close(lifeline)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _sweep(mark)
    _remove(temporary)


def _sweep(mark: str) -> None:
    """Kill what carries the mark: there is something only if the supervisor could not do its work."""
    wanted = f"{MARK}={mark}".encode()
    end = time.monotonic() + ENDING_SECONDS
    while time.monotonic() < end:
        found = [pid for pid in _processes() if wanted in _environment(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()] if os.path.isdir("/proc") else []


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-LINES:]


def _described(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
