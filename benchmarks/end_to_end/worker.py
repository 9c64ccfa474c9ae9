"""An engine in a process of its own: reads one JSON request a line and answers each with one line.

Started as ``python -m benchmarks.end_to_end.worker ENGINE SETTINGS``; says ``{}`` once the model is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ernie_accel.bench.workload import Workload, prompts
from ernie_accel.system import peak_memory

from .engines import ENGINES
from .peers.base import Engine, Setup

VOCABULARY = 90_000
"""Ids of the ordinary part of the vocabulary."""


class Worker:
    """Answers requests about one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ready: Workload | None = None

    def prepare(self, workload: Workload, rounds: int) -> dict[str, Any]:
        """Fill caches, and run a little so that everything is warm."""
        self._ready = None
        if workload.measures == "prefill":
            (prompt,) = prompts(workload, VOCABULARY)
            return {"token": self._engine.prefill(prompt)}
        self._start(workload, rounds)
        self._engine.advance(2)
        self._ready = workload
        return {}

    def measure(self, workload: Workload, rounds: int) -> dict[str, Any]:
        """Run the workload once: seconds, peak memory, and the bytes of a decoding step where the engine knows."""
        if workload.measures == "prefill":
            (prompt,) = prompts(workload, VOCABULARY)
            taken = seconds(lambda: self._engine.prefill(prompt))
            return {"seconds": taken, "peak": peak()}
        if workload.measures == "request":
            return {"seconds": seconds(lambda: self._answer(workload, rounds)), "peak": peak()}
        if self._ready != workload or not workload.goes_on:
            self.prepare(workload, rounds)
        taken = seconds(lambda: self._engine.advance(workload.steps))
        return {"seconds": taken, "peak": peak(), "bytes": self._engine.step_bytes()}

    def _start(self, workload: Workload, rounds: int) -> None:
        self._engine.start(prompts(workload, VOCABULARY), workload.room(rounds))

    def _answer(self, workload: Workload, rounds: int) -> None:
        self._start(workload, rounds)  # chooses the first token
        if workload.steps > 1:
            self._engine.advance(workload.steps - 1)


def peak() -> int:
    """Largest resident memory of this process and of those that compute for it, bytes; shared pages count in each."""
    total = peak_memory()
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            total += sum(
                1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
            )
    return total


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answer until the requests end."""
    print("{}", file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        action = {"prepare": worker.prepare, "measure": worker.measure}[request["do"]]
        print(
            json.dumps(action(Workload(**request["workload"]), request["rounds"])), file=answers, flush=True
        )


def main(name: str, settings: str) -> None:
    """Load and serve. Whatever an engine prints goes to standard error, so that answers stay readable."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    entry = ENGINES[name]
    setup = Setup(
        precision=entry.precision,
        kv=entry.kv,
        resident=entry.resident,
        backend=entry.backend,
        **json.loads(settings),
    )
    module = importlib.import_module(f"benchmarks.end_to_end.peers.{entry.module}")
    serve(Worker(module.load(setup)), sys.stdin, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
