"""A program of its own, for the interpreter that has FastDeploy: runs its ``LLM`` and answers over a socket.

    python serve.py SOCKET

Lines of JSON go both ways. The first that comes in says what to start; then ``generate``, ``cancel`` and ``close``.
Out go ``stage``, ``ready`` or ``failed``, then ``piece``, ``end`` and ``error`` of each request. Each request is a call
of ``LLM.generate`` in a thread of its own, with one prompt and one SamplingParams: FastDeploy batches what runs at the
same time, and lists of either have had mistakes. Standard output belongs to FastDeploy; it is the log.

A request that is cancelled is ended by the means of FastDeploy's own server, where its version has them, and read to
its end in either case: FastDeploy forgets an answer only when its end has been read. Until then ``going`` takes the
place of ``piece``.

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
from collections.abc import Callable
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


class Request:
    """One that is under way: FastDeploy's name for it, once that is known, and whether it was cancelled."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.cancelled = False


class Server:
    """One ``LLM`` and the requests that are under way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests: dict[int, Request] = {}
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
        stops = stopper(self._llm) is not None
        version = str(getattr(module, "__version__", ""))
        send("ready", version=version, pid=os.getpid(), stops=stops)

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
                self._cancel(command["id"])
            elif command["op"] == "generate":
                self._requests[command["id"]] = Request()
                threading.Thread(target=self._answer, args=(command,), daemon=True).start()

    def _cancel(self, number: int) -> None:
        request = self._requests.get(number)
        if request is not None:
            request.cancelled = True
            self._stop(request)

    def _named(self, request: Request, name: object) -> None:
        """Take note of FastDeploy's name for a request, which may have been cancelled before there was one."""
        if request.name is not None or not isinstance(name, str):
            return
        request.name = name
        if request.cancelled:
            self._stop(request)

    def _stop(self, request: Request) -> None:
        stop = stopper(self._llm)
        if stop is None or request.name is None:
            return
        try:
            stop(request.name)
        except Exception:  # it goes on then, as without
            traceback.print_exc()

    def _answer(self, command: dict[str, Any]) -> None:
        number = command["id"]
        try:
            self._generate(number, command)
        except Exception as error:
            traceback.print_exc()
            code = getattr(error, "error_code", 0)
            message = f"{type(error).__name__}: {error}"
            self._connection.send(
                "error", id=number, code=code if isinstance(code, int) else 0, message=message
            )
        finally:
            del self._requests[number]

    def _generate(self, number: int, command: dict[str, Any]) -> None:
        send, request, count, cached = self._connection.send, self._requests[number], 0, 0
        wanted = command["fields"].get("logprobs")
        prompt: dict[str, Any] = {"prompt_token_ids": list(command["ids"])}
        answer = self._llm.generate([prompt], self._sampling(command["fields"]), stream=True)
        self._named(request, prompt.get("request_id"))  # FastDeploy writes it there
        for outputs in answer:
            output = outputs[0] if outputs else None
            if output is None:
                continue
            self._named(request, output.request_id)
            if output.error_code != OK:
                send("error", id=number, code=output.error_code, message=str(output.error_msg))
                return
            new = output.outputs  # one, not a list
            ids = [int(i) for i in new.token_ids or ()]
            cached = int(getattr(output, "num_cached_tokens", 0) or 0)
            if request.cancelled:
                send("going", id=number)
            else:
                rows = {} if wanted is None else {"logprobs": logprobs(new, ids, count, wanted)}
                send("piece", id=number, text=new.text or "", ids=ids, **rows)
            count += len(ids)
        if not count and not request.cancelled:  # streams leave out results that hold nothing but an error
            send("error", id=number, code=0, message="it ended the request without a token; its logs say why")
        else:
            send("end", id=number, count=count, cached=cached)

    def _sampling(self, fields: dict[str, Any]) -> Any:
        """Make SamplingParams; fields that begin with guided_ are an object of their own."""
        guided = {key[7:]: fields.pop(key) for key in list(fields) if key.startswith("guided_")}
        if guided:
            kind = sys.modules[self._params.__module__].GuidedDecodingParams
            fields["guided_decoding"] = kind(**guided)
        return self._params(**fields)


def stopper(llm: Any) -> Callable[[str], object] | None:
    """Return what FastDeploy ends a request with when a client of its server goes away; None in versions without."""
    engine = getattr(getattr(llm, "llm_engine", None), "engine", None)
    stop = getattr(getattr(engine, "resource_manager", None), "add_abort_req_ids", None)
    return stop if callable(stop) else None


def logprobs(new: Any, ids: list[int], before: int, most: int) -> list[list[list[Any]]]:
    """Return ids and log-probabilities for each new token: its own first, then those of the most probable.

    FastDeploy streams new tokens with the log-probabilities of all tokens so far; new ones alone are taken too.
    """
    found = getattr(new, "top_logprobs", None)
    if found is None:
        return []
    rows = list(zip(found.logprob_token_ids, found.logprobs, strict=True))
    if len(rows) >= before + len(ids):
        rows = rows[before : before + len(ids)]
    end = most + 1
    return [[[int(i) for i in row[:end]], [float(value) for value in values[:end]]] for row, values in rows]


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
