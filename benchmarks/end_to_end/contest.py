"""Engines in processes of their own, which take turns: one computes, the others wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ernie_accel.bench.statistics import alternate
from ernie_accel.bench.workload import Workload

PAUSE = 0.4  # seconds before each run, for threads of the last one to go to sleep
Answer = dict[str, Any]


@dataclass
class Values:
    """What one engine gave on one workload, one value a round.

    Attributes:
        rates: Tokens per second, all sequences together.
        ceilings: Read bandwidth right before each of them, bytes a second.
        step_bytes: Bytes that a decoding step reads; empty where the engine does not know.
        token: The first token after the prompt of a prefill.
        peak: Largest resident memory of its process up to then, bytes, pages of a mapped model file among them; 0 where
            the system does not tell.
    """

    rates: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    token: int | None = None
    peak: int = 0


class Contestant:
    """An engine's process, loaded and waiting."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name
        self._expect()

    def ask(self, what: str, workload: Workload, rounds: int) -> Answer:
        """Have it prepare or measure a workload."""
        assert self._process.stdin is not None
        time.sleep(PAUSE)
        request = {"do": what, "workload": asdict(workload), "rounds": rounds}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._expect()

    def _expect(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the engine '{self._name}' ended early; what it said stands above")
        answer: Answer = json.loads(line)
        return answer


Start = Callable[[str], Any]
"""Starts an engine by name; a context manager that gives a Contestant."""


@contextmanager
def contestant(name: str, settings: dict[str, Any]) -> Iterator[Contestant]:
    """Start an engine; end its process on leaving."""
    command = [sys.executable, "-m", "benchmarks.end_to_end.worker", name, json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings["threads"])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Contestant(process, name)
        finally:
            process.kill()


def together(
    start: Start,
    names: Sequence[str],
    workloads: Sequence[Workload],
    rounds: int,
    ceiling: Callable[[], float],
) -> Iterator[tuple[Workload, dict[str, Values]]]:
    """Load all engines, then let them take turns on one workload after the other.

    Args:
        start: Starts an engine.
        names: Of the engines.
        workloads: In this order.
        rounds: At least 1.
        ceiling: Measures the read bandwidth, bytes a second. On shared machines it changes within seconds.
    """
    with ExitStack() as stack:
        engines = {name: stack.enter_context(start(name)) for name in names}
        for workload in workloads:
            values = {name: Values() for name in names}
            for name, engine in engines.items():
                values[name].token = engine.ask("prepare", workload, rounds).get("token")
            alternate(
                {
                    name: partial(_turn, engine, workload, rounds, ceiling, values[name])
                    for name, engine in engines.items()
                },
                rounds,
            )
            yield workload, values


def one_at_a_time(
    start: Start,
    names: Sequence[str],
    workloads: Sequence[Workload],
    rounds: int,
    ceiling: Callable[[], float],
) -> Iterator[tuple[Workload, dict[str, Values]]]:
    """Load each engine anew in each round, for all workloads, so that one model at a time is in memory."""
    values = {workload: {name: Values() for name in names} for workload in workloads}

    def run(name: str) -> float:
        with start(name) as engine:
            for workload in workloads:
                kept = values[workload][name]
                kept.token = engine.ask("prepare", workload, rounds).get("token")
                _turn(engine, workload, rounds, ceiling, kept)
        return 0.0

    alternate({name: partial(run, name) for name in names}, rounds)
    yield from values.items()


def _turn(
    engine: Contestant, workload: Workload, rounds: int, ceiling: Callable[[], float], values: Values
) -> float:
    values.ceilings.append(ceiling())
    answer = engine.ask("measure", workload, rounds)
    values.rates.append(workload.rate(answer["seconds"]))
    values.peak = max(values.peak, answer["peak"])
    if answer.get("bytes") is not None:
        values.step_bytes.append(answer["bytes"])
    return values.rates[-1]
