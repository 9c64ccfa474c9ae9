"""What a step of the engine asks of a Runner that computes while masks are worked out, and of one that does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from ernie_accel.backends.base import Runner, RunnerInfo, Select, Step, StepResult
from ernie_accel.engine.job import Job
from ernie_accel.engine.stepping import Stepper
from ernie_accel.engine.structured import Guide


class Log(list[str]):
    """What happened, in order."""


class Led(Guide):
    """A guide that only says when its mask is worked out."""

    def __init__(self, log: Log, *, known: bool = False, error: Exception | None = None) -> None:
        self.log = log
        self.known = known
        self.error = error

    @property
    def waits(self) -> bool:
        return not self.known

    def mask(self) -> Any:
        if not self.known:
            self.log.append("mask")
            if self.error is not None:
                raise self.error
        self.known = True
        return np.ones(1, np.uint32)


class Asking(Job):
    """Draws after its tokens."""

    def __init__(self, seq: int, guide: Guide | None, output: Any = "select", tokens: int = 1) -> None:
        super().__init__([1] * tokens)
        self.seq = seq
        self.guide = guide
        self.output = output

    def step(self, count: int, *, late: bool = False) -> Step:
        rows = int(count == self.pending)
        select = self.select() if rows and self.output == "select" and not late else None
        return Step(self.seq or 0, [1] * count, rows, self.output, select)

    def select(self) -> Select:
        return Select(mask=self.guide.mask() if self.guide is not None else None)

    def accept(self, count: int, result: StepResult) -> None:
        raise AssertionError("not here")

    def cancel(self) -> None:
        raise AssertionError("not here")


class Recording:
    """A Runner that writes down what it is asked for; a context manager as its own Pending."""

    def __init__(self, log: Log, *capabilities: str) -> None:
        self.log = log
        self.info = RunnerInfo(
            backend="recording",
            vocab_size=32,
            hidden_size=1,
            max_context=9,
            precision="fp32",
            kv_precision="fp32",
            page_size=1,
            max_step_tokens=9,
            max_sequences=9,
            capabilities=frozenset(capabilities),
        )
        self.selects: Mapping[int, Select] = {}

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        self.log.append("forward")
        return [StepResult() for _ in batch]

    def start(self, batch: Sequence[Step]) -> Recording:
        self.log.append(
            "start "
            + " ".join("late" if s.rows and s.output == "select" and not s.select else "-" for s in batch)
        )
        self.batch = batch
        return self

    def result(self, selects: Mapping[int, Select]) -> list[StepResult]:
        self.log.append("result")
        self.selects = selects
        return [StepResult() for _ in self.batch]

    def close(self) -> None:
        self.log.append("close")

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """These guides have nothing that several could be worked out from together."""
    monkeypatch.setattr(Guide, "prepare", lambda guides: None)


def stepper(runner: Recording) -> Stepper:
    return Stepper(cast("Runner", runner))


def test_masks_come_between_start_and_result() -> None:
    log = Log()
    runner = Recording(log, "select", "overlap")
    jobs = [Asking(0, None), Asking(1, Led(log)), Asking(2, Led(log, known=True))]
    steps, results = stepper(runner).run([(job, 1) for job in jobs])
    assert log == ["start - late -", "mask", "result", "close"]
    assert [step.seq for step in steps] == [0, 1, 2]
    assert len(results) == 3
    assert list(runner.selects) == [1]
    assert runner.selects[1].mask is not None


def test_rows_that_are_drawn_here_need_their_masks_after_the_step() -> None:
    log = Log()
    runner = Recording(log, "overlap")
    stepper(runner).run([(Asking(0, Led(log), output="logits"), 1)])
    assert log == ["start -", "mask", "result", "close"]
    assert runner.selects == {}


@pytest.mark.parametrize("capabilities", [("select",), ()])
def test_without_overlap_masks_come_first(capabilities: tuple[str, ...]) -> None:
    log = Log()
    stepper(Recording(log, *capabilities)).run([(Asking(0, Led(log)), 1)])
    assert log == ["mask", "forward"]


def test_without_anything_to_work_out_a_step_is_not_started() -> None:
    log = Log()
    run = stepper(Recording(log, "select", "overlap")).run
    run([(Asking(0, None), 1)])
    run([(Asking(0, Led(log, known=True)), 1)])
    run([(Asking(0, Led(log), tokens=5), 3)])  # the beginning of a prompt
    assert log == ["forward"] * 3


def test_a_mask_that_fails_closes_the_step() -> None:
    log = Log()
    guides = [Led(log), Led(log, error=KeyError("mask")), Led(log)]
    with pytest.raises(KeyError):
        stepper(Recording(log, "select", "overlap")).run([(Asking(i, g), 1) for i, g in enumerate(guides)])
    assert log == ["start late late late", "mask", "mask", "close"]


@pytest.mark.parametrize(
    ("busy", "masks", "first"),
    [(1, 8, "start"), (1, 7, "mask"), (2, 8, "mask"), (3, 8, "mask"), (0, 1, "start")],
)
def test_beside_a_step_only_if_a_processor_is_left_and_masks_are_many(
    monkeypatch: pytest.MonkeyPatch, busy: int, masks: int, first: str
) -> None:
    monkeypatch.setattr("ernie_accel.engine.stepping.available_threads", lambda: 2)
    log = Log()
    runner = Recording(log, "select", "overlap")
    runner.info = replace(runner.info, threads=busy)
    stepper(runner).run([(Asking(i, Led(log)), 1) for i in range(masks)])
    assert log[0].split()[0] == first
