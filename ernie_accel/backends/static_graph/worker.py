"""A child process that runs graphs, from its parent's side: start, ask, notice the end, leave nothing behind.

What the two say to each other stands in ``child.py``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ernie_accel.backends.static_graph.log import Log
from ernie_accel.backends.static_graph.memory import SharedMemory
from ernie_accel.errors import BackendError, BackendProcessError, ClosedError, ErnieAccelError

__all__ = ["Worker"]

CHILD = Path(__file__).with_name("child.py")
LOG_LINES = 20
MESSAGE_CHARACTERS = 2000
END_SECONDS = 5.0
"""How long a killed process may take to be gone; the system needs milliseconds."""


class Worker:
    """One child process. Calls come from one thread at a time; ``close`` may be called twice and from any.

    Args:
        python: The interpreter that runs the child.
        name: What errors call the child.
        environment: Its environment variables, all of them.
        error_mark: What a line of the child's output holds where a step failed and nothing else says so.
        program: What the interpreter is to run.
        memory: What the child is to see, for several that see the same; closed with the first of them.
    """

    def __init__(
        self,
        python: str,
        name: str,
        environment: Mapping[str, str],
        error_mark: str = "",
        *,
        program: Sequence[str] = (str(CHILD),),
        memory: SharedMemory | None = None,
    ) -> None:
        self.memory = memory or SharedMemory()
        self._name = name
        self._error_mark = error_mark
        self._log = Log()
        self._owner = os.getpid()
        self._ended: Callable[[], ErnieAccelError] | None = None
        ours, theirs = socket.socketpair()
        read_end, self._lifeline = os.pipe()
        self._socket = ours
        shared = (theirs.fileno(), read_end, self.memory.fd)
        try:
            self._process = subprocess.Popen(
                [python, *program, *map(str, shared)],
                stdin=subprocess.DEVNULL,
                stdout=self._log.fd,
                stderr=self._log.fd,
                pass_fds=shared,
                env=dict(environment),
                start_new_session=True,  # a group of its own: to be killed whole, and out of reach of Ctrl-C
            )
        except OSError as error:
            ours.close()
            os.close(self._lifeline)
            self._log.close()
            self.memory.close()
            raise BackendProcessError(f"{name} cannot be started with {python}: {error}") from error
        finally:
            theirs.close()
            os.close(read_end)
        self._finalizer = weakref.finalize(
            self, _end, self._process, self._owner, self._socket, self._lifeline, self._log, self.memory
        )

    @property
    def pid(self) -> int:
        """Process id of the child, and of its group."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the child is gone, as far as the system says."""
        return self._process.poll() is not None

    def fileno(self) -> int:
        """What becomes readable when the child answers or ends."""
        return self._socket.fileno()

    def ask(self, what: str, seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request and return what it is answered.

        Args:
            what: What the child does then, for errors.
            seconds: How long that may take.
            **request: ``op`` and its arguments.

        Raises:
            BackendError: The child says that it failed.
            BackendProcessError: It ended, or did not answer in time and was ended.
            ClosedError: ``close`` was called.
        """
        self.begin(what, **request)
        return self.finish(what, seconds)

    def begin(self, what: str, **request: Any) -> None:
        """Send a request; ``finish`` has to be called before the next."""
        self._check_alive()
        try:
            self._send(request)
        except OSError:
            raise self._lost(f"ended before it was to {what}") from None

    def finish(self, what: str, seconds: float) -> dict[str, Any]:
        """Return what the last request is answered; see ``ask``."""
        self._check_alive()
        try:
            answer = self._receive(time.monotonic() + seconds)
        except TimeoutError:
            raise self._lost(f"did not {what} within {seconds:g} s and was ended") from None
        except (EOFError, OSError, ValueError):  # gone, or what it says is no message
            raise self._lost(f"ended while it was to {what}") from None
        except BaseException:
            self.close()  # an answer that nobody waits for would be taken for that of the next request
            raise
        written = self._log.news()
        if "error" in answer:
            raise BackendError(f"{self._name} failed to {what}: {answer['error']}{_below(written)}")
        if self._error_mark and self._error_mark in written:
            # what came as the answer then is what an earlier run left
            raise BackendError(f"{self._name} failed to {what}:{_below(written)}")
        result: dict[str, Any] = answer["ok"]
        return result

    def close(self) -> None:
        """End the child and its whole process group."""
        if self._ended is None:
            self._ended = partial(ClosedError, "the runner is closed; load the model again")
        self._finalizer()

    def _check_alive(self) -> None:
        if self._ended is not None:
            raise self._ended()

    def _send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode()
        self._socket.settimeout(None)
        self._socket.sendall(struct.pack(">I", len(body)) + body)

    def _receive(self, deadline: float) -> dict[str, Any]:
        (length,) = struct.unpack(">I", self._read(4, deadline))
        answer: dict[str, Any] = json.loads(self._read(length, deadline))
        return answer

    def _read(self, count: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _lost(self, how: str) -> ErnieAccelError:
        """End what is left of the child; return the error, which later calls raise again."""
        if self._ended is not None:  # by ``close``, in another thread
            return self._ended()
        code = _kill(self._process)
        log = self._log.tail(LOG_LINES)
        message = f"the process of {self._name} {how} ({_ending(code)})"
        last = _below("\n".join(log))
        words = f"; its last words:{last}" if last else "; it left no word"
        # made anew each time: one that is kept would keep whatever its first traceback refers to
        self._ended = partial(BackendProcessError, message + words, exit_code=code, log=log)
        self._finalizer()
        return self._ended()


def _kill(process: subprocess.Popen[bytes]) -> int | None:
    """Kill the process group and return the leader's exit code; None if the system does not say in time."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _end(
    process: subprocess.Popen[bytes],
    owner: int,
    connection: socket.socket,
    lifeline: int,
    log: Log,
    memory: SharedMemory,
) -> None:
    """Give everything back. In a fork of the owner the child is somebody else's."""
    if os.getpid() == owner:
        _kill(process)
    connection.close()
    os.close(lifeline)
    log.close()
    memory.close()


def _below(text: str) -> str:
    text = text.strip()[-MESSAGE_CHARACTERS:]
    return f"\n{text}" if text else ""


def _ending(code: int | None) -> str:
    if code is None:
        return "how, the system does not say"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
