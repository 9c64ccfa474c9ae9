"""llama.cpp's process, as the one who measures sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PAUSE = 0.4  # seconds before each run, for threads of the last one to go to sleep


class Rival:
    """A process that serves requests when asked to, and sleeps else."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._expect()

    def seconds(self, kind: str, count: int, seed: int, slots: int) -> float:
        """Have it serve requests, so many at a time; return how long that took."""
        assert self._process.stdin is not None
        time.sleep(PAUSE)
        request = {"kind": kind, "count": count, "seed": seed, "slots": slots}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return float(self._expect()["seconds"])

    def _expect(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: llama.cpp ended early; what it said stands above")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def llama_cpp(shape: str, precision: str, threads: int, slots: int, room: int) -> Iterator[Rival]:
    """Start it with ``slots`` sequences of ``room`` tokens; end it on leaving."""
    command = [sys.executable, "-m", "benchmarks.serving.llama_cpp", shape, precision]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        [*command, str(threads), str(slots), str(room)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield Rival(process)
        finally:
            process.kill()
