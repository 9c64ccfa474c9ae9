"""A program of its own, for the interpreter that has FastDeploy: runs its ``LLM`` and answers over a socket.

    python serve.py SOCKET

Lines of JSON go both ways. The first that comes in says what to start; then ``generate``, ``cancel`` and ``close``.
Out go ``stage``, ``ready`` or ``failed``, then ``piece``, ``end`` and ``error`` of each request. Each request is a call
of ``LLM.generate`` in a thread of its own, with one prompt and one SamplingParams: FastDeploy batches what runs at the
same time, and lists of either have had mistakes. Standard output belongs to FastDeploy; it is the log.

Needs nothing but the standard library and FastDeploy: no part of ernie_accel has to be installed beside it.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1
LOOK_SECONDS = 0.5
OK = 200


class Failed(Exception):
    """What the start ends with."""


class Connection:
    """The socket; any thread may send."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        os.set_inheritable(number, False)
        self._lines = self._socket.makefile("r", encoding="utf-8", newline="\n")
        self._sending = threading.Lock()

    def read(self) -> dict[str, Any] | None:
        """Wait for the next line; None when the other side is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        found: dict[str, Any] | None = json.loads(line) if line else None
        return found

    def send(self, event: str, **values: Any) -> None:
        """Write a line, if anybody is there still."""
        data = json.dumps({"event": event, **values}).encode() + b"\n"
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError:
                return


class Server:
    """One ``LLM`` and the requests that are under way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cancelled: set[int] = set()
        self._llm: Any = None
        self._params: Any = None

    def start(self, settings: dict[str, Any]) -> None:
        """Import, construct, and prove that a token comes."""
        send = self._connection.send
        send("stage", name="importing FastDeploy")
        module = importlib.import_module("fastdeploy")
        if "LLM" not in (getattr(module, "__all__", None) or ()):
            raise Failed(
                f"the module fastdeploy of {sys.executable} ({module.__file__}) has no LLM: it is no FastDeploy 2.x"
            )
        self._params = module.SamplingParams
        if "stream" not in inspect.signature(module.LLM.generate).parameters:
            raise Failed("this FastDeploy cannot stream offline: 2.2 or newer is needed")
        send("stage", name="starting FastDeploy")
        self._llm = module.LLM(**settings["arguments"])
        # LLM() returns although its engine did not start: look for workers, and then for a token.
        workers = descendants(os.getpid())
        if not workers:
            raise Failed("LLM() returned, and none of its worker processes is alive")
        send("stage", name="waiting for a first token")
        self._probe(settings["probe"])
        threading.Thread(target=self._watch, args=(long_lived(workers),), daemon=True).start()
        send("ready", version=str(getattr(module, "__version__", "")), pid=os.getpid())

    def _probe(self, ids: list[int]) -> None:
        for outputs in self._llm.generate([ids], self._params(max_tokens=1), stream=True):
            for output in outputs:
                if output is not None and output.error_code != OK:
                    raise Failed(f"a first request failed with {output.error_code}: {output.error_msg}")

    def _watch(self, workers: list[int]) -> None:
        """A worker that dies takes everything with it: what waits for it would wait for ever."""
        while True:
            time.sleep(LOOK_SECONDS)
            dead = [pid for pid in workers if not alive(pid)]
            if dead:
                print(f"worker process {dead[0]} has died", file=sys.stderr, flush=True)
                self._connection.send("dead", message=f"its worker process {dead[0]} has died")
                os._exit(70)

    def serve(self) -> None:
        """Obey until told to close, or until nobody is there any more."""
        while True:
            command = self._connection.read()
            if command is None or command["op"] == "close":
                return
            if command["op"] == "cancel":
                self._cancelled.add(command["id"])
            elif command["op"] == "generate":
                threading.Thread(target=self._answer, args=(command,), daemon=True).start()

    def _answer(self, command: dict[str, Any]) -> None:
        number = command["id"]
        try:
            self._generate(number, command)
        except Exception as error:
            traceback.print_exc()
            self._connection.send("error", id=number, code=0, message=f"{type(error).__name__}: {error}")
        finally:
            self._cancelled.discard(number)

    def _generate(self, number: int, command: dict[str, Any]) -> None:
        send, count, cached = self._connection.send, 0, 0
        params = self._sampling(command["fields"])
        for outputs in self._llm.generate([list(command["ids"])], params, stream=True):
            if number in self._cancelled:  # FastDeploy has no way to stop it; nobody hears the rest
                return
            output = outputs[0] if outputs else None
            if output is None:
                continue
            if output.error_code != OK:
                send("error", id=number, code=output.error_code, message=str(output.error_msg))
                return
            new = output.outputs  # one, not a list
            ids = [int(i) for i in new.token_ids or ()]
            count += len(ids)
            cached = int(getattr(output, "num_cached_tokens", 0) or 0)
            send("piece", id=number, text=new.text or "", ids=ids)
        send("end", id=number, count=count, cached=cached)

    def _sampling(self, fields: dict[str, Any]) -> Any:
        """Make SamplingParams; fields that begin with guided_ are an object of their own."""
        guided = {key[7:]: fields.pop(key) for key in list(fields) if key.startswith("guided_")}
        if guided:
            kind = sys.modules[self._params.__module__].GuidedDecodingParams
            fields["guided_decoding"] = kind(**guided)
        return self._params(**fields)


def descendants(root: int) -> list[int]:
    """Return all processes beneath ``root`` that are alive."""
    parents = {int(name): parent_of(name) for name in os.listdir("/proc") if name.isdecimal()}
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found - {root})
        found |= more


def parent_of(pid: str) -> int | None:
    """Return the parent of a process, None if it has ended."""
    fields = state(pid)
    return None if not fields or fields[0] == "Z" else int(fields[1])


def state(pid: str) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name: state, parent and so on."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Whether a process has not ended."""
    return parent_of(str(pid)) is not None


def long_lived(pids: list[int]) -> list[int]:
    """Those that run Python, as workers and their launcher do; a shell or a tool may end without harm."""
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                program = os.path.basename(file.read().split(b"\0")[0])
        except OSError:
            continue
        if program.startswith(b"python"):
            found.append(pid)
    return found


def main() -> int:
    """Serve; return 0 when told to close, 1 after a start that failed."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    connection = Connection(int(sys.argv[1]))
    settings = connection.read()
    if settings is None:
        return 1
    server = Server(connection)
    try:
        server.start(settings)
    except BaseException as error:
        traceback.print_exc()
        message = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        connection.send("failed", message=message)
        return 1
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
