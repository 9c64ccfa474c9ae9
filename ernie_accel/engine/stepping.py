"""Has the Runner compute one step for some jobs, and works out beside it what structured output may draw."""

from __future__ import annotations

from ernie_accel.backends.base import Runner, Step, StepResult
from ernie_accel.backends.capabilities import Overlaps
from ernie_accel.engine.job import Job
from ernie_accel.engine.structured import Guide
from ernie_accel.system import available_threads

__all__ = ["Batch", "Stepper"]

Batch = list[tuple[Job, int]]
"""Jobs of a step, each with the number of tokens that it appends."""


LEAST_MASKS = 8
"""Fewer are sooner worked out than a step handed from one processor to another and back, which takes about 0.1 ms."""


class Stepper:
    """Masks are needed when a step draws: a Runner with ``overlap`` computes meanwhile, others wait for them.

    So do those that compute on the processors where all are busy, as what is worked out beside would only be in the
    way, and where masks are few.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._overlaps: Overlaps | None = None
        self._least = LEAST_MASKS if runner.info.threads else 1
        if "overlap" in runner.info.capabilities and runner.info.threads < available_threads():
            assert isinstance(runner, Overlaps), "a runner with the capability overlap has start()"
            self._overlaps = runner

    def run(self, batch: Batch) -> tuple[list[Step], list[StepResult]]:
        """Return the steps of the jobs and their answers; raises what the Runner does, and what masks do."""
        led = {i: job.guide for i, (job, count) in enumerate(batch) if job.guide and count == job.pending}
        waiting = {i: guide for i, guide in led.items() if guide.waits}
        if self._overlaps is not None and len(waiting) >= self._least:
            return self._run_beside(batch, waiting, self._overlaps)
        return self._run_after(batch, waiting)

    def _run_after(self, batch: Batch, waiting: dict[int, Guide]) -> tuple[list[Step], list[StepResult]]:
        Guide.prepare(waiting.values())
        steps = [job.step(count) for job, count in batch]
        return steps, self._runner.forward(steps)

    def _run_beside(
        self, batch: Batch, waiting: dict[int, Guide], runner: Overlaps
    ) -> tuple[list[Step], list[StepResult]]:
        steps = [job.step(count, late=i in waiting) for i, (job, count) in enumerate(batch)]
        with runner.start(steps) as pending:  # which ends the step where a mask cannot be found
            Guide.prepare(waiting.values())
            for guide in waiting.values():
                guide.mask()
            selects = {i: batch[i][0].select() for i in waiting if steps[i].output == "select"}
            return steps, pending.result(selects)
