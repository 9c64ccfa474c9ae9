"""Engines take turns; the worker times them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.end_to_end import contest
from benchmarks.end_to_end.contest import one_at_a_time, together
from benchmarks.end_to_end.worker import Worker, serve
from ernie_accel.bench.workload import Workload, workloads

PLAN = workloads([8], [4], [2])


class FakeEngine:
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def prefill(self, prompt: Sequence[int]) -> int:
        self.calls.append(("prefill", len(prompt)))
        return 42

    def start(self, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self.calls.append(("start", [len(prompt) for prompt in prompts], steps))

    def advance(self, steps: int) -> None:
        self.calls.append(("advance", steps))

    def step_bytes(self) -> int | None:
        return 100


class FakeContestant:
    """A contestant without a process."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log
        self._worker = Worker(FakeEngine())

    def ask(self, what: str, workload: Workload, rounds: int) -> dict[str, Any]:
        self._log.append(f"{what} {self._name}")
        answer: dict[str, Any] = getattr(self._worker, what)(workload, rounds)
        return answer


def starter(log: list[str]) -> Any:
    @contextmanager
    def start(name: str) -> Iterator[FakeContestant]:
        log.append(f"load {name}")
        yield FakeContestant(name, log)
        log.append(f"end {name}")

    return start


def test_engines_are_loaded_once_and_alternate() -> None:
    log: list[str] = []
    results = list(together(starter(log), ["a", "b"], PLAN[:1], 2, lambda: 5.0))
    assert log == [
        "load a",
        "load b",
        "prepare a",
        "prepare b",
        "measure a",
        "measure b",
        "measure b",
        "measure a",
        "end b",
        "end a",
    ]
    ((workload, values),) = results
    assert workload == PLAN[0]
    assert values["a"].ceilings == [5.0, 5.0]
    assert values["a"].token == 42
    assert len(values["a"].rates) == len(values["b"].rates) == 2


def test_one_at_a_time_never_holds_two_models() -> None:
    log: list[str] = []
    results = list(one_at_a_time(starter(log), ["a", "b"], PLAN, 2, lambda: 5.0))
    held = 0
    for line in log:
        held += line.startswith("load") - line.startswith("end")
        assert held in (0, 1)
    assert [workload.name for workload, _ in results] == ["prefill-8", "decode-4x2"]
    assert all(len(kept.rates) == 2 for _, values in results for kept in values.values())
    assert results[1][1]["a"].step_bytes == [100, 100]
    assert results[1][1]["a"].peak > 1 << 20


def test_short_contexts_begin_anew_each_round_and_long_ones_go_on() -> None:
    for context, starts in ((4, 3), (2048, 1)):
        engine = FakeEngine()
        worker = Worker(engine)
        workload = Workload(measures="decode", context=context, batch=2, steps=4)
        worker.prepare(workload, 2)
        worker.measure(workload, 2)
        worker.measure(workload, 2)
        calls = [call for call in engine.calls if call[0] == "start"]
        assert len(calls) == starts
        assert calls[0][1] == [context, context]
        advanced = sum(call[1] for call in engine.calls if call[0] == "advance")
        assert advanced / starts <= calls[0][2]


def test_a_request_is_read_and_answered_anew_each_time() -> None:
    engine = FakeEngine()
    worker = Worker(engine)
    (workload,) = workloads([], [], [1], request=[32])
    worker.prepare(workload, 2)
    engine.calls.clear()
    assert worker.measure(workload, 2)["seconds"] > 0
    worker.measure(workload, 2)
    once = [("start", [32], workload.room(2)), ("advance", workload.steps - 1)]
    assert engine.calls == once + once


def test_a_worker_answers_a_line_with_a_line() -> None:
    requests = [
        {"do": what, "workload": asdict(workload), "rounds": 1}
        for workload in PLAN
        for what in ("prepare", "measure")
    ]
    answers = io.StringIO()
    serve(Worker(FakeEngine()), io.StringIO("\n".join(map(json.dumps, requests))), answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert lines[0] == {}
    assert lines[1] == {"token": 42}
    assert lines[2]["seconds"] > 0
    assert lines[4]["bytes"] == 100
    assert lines[2]["peak"] > 0
    assert lines[4]["peak"] > 0


def test_an_engine_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PAUSE", 0)
    settings = {"shape": "no such shape", "threads": 1, "context": 8, "batch": 1}
    with (
        pytest.raises(SystemExit, match="the engine 'ours-fp32' ended early"),
        contest.contestant("ours-fp32", settings),
    ):
        pass
