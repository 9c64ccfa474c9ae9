"""Decides what goes into each step of a Runner: admission, chunks of prompts, making room. Knows no text, no locks."""

from __future__ import annotations

import math
import time
from bisect import insort
from collections.abc import Iterable

from ernie_accel.backends.base import Runner, Step, StepResult
from ernie_accel.backends.engine import closed
from ernie_accel.bell import Bell
from ernie_accel.engine.budget import TOKENS_PER_STEP, Budget
from ernie_accel.engine.failures import alone, failed
from ernie_accel.engine.job import Job
from ernie_accel.engine.metrics import Recorder
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.prefix import PrefixCache
from ernie_accel.engine.request import late
from ernie_accel.engine.speculation import Speculation
from ernie_accel.engine.stepping import Batch, Stepper
from ernie_accel.errors import CapacityError

__all__ = ["Scheduler"]

LOOKAHEAD = 64
"""Waiting jobs that admission looks at in one step, where those in front wait for somebody's prompt."""


class Scheduler:
    """Runs jobs in one ragged batch, higher priorities first, then in the order in which they came.

    When memory runs out, kept prefixes go first, then the youngest job of the lowest priority, to be computed again.
    One thread calls its methods.
    """

    def __init__(
        self,
        runner: Runner,
        options: EngineOptions,
        recorder: Recorder,
        speculation: Speculation | None = None,
    ) -> None:
        self._runner = runner
        self._info = runner.info
        self._budget = Budget(
            min(self._info.max_step_tokens, options.step_tokens or TOKENS_PER_STEP), options.latency_target
        )
        self._stepper = Stepper(runner)
        self._recorder = recorder
        self._speculation = speculation
        self._waiting: list[_Place] = []
        self._running: list[Job] = []
        self._arrivals = 0
        self._timed = 0  # jobs with a deadline
        self._closed = False
        self.prefixes = PrefixCache(runner, options.prefix_cache)
        self.queued: dict[Job, None] = {}
        """Jobs that wait for their start, those included that were not added yet; others may put jobs in."""
        self.room = Bell()
        """Rung when there are fewer."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._running or self._waiting)

    def gauges(self) -> dict[str, int]:
        """Return the state between two steps."""
        capacity = self._runner.capacity()
        return {
            "waiting": len(self._waiting),
            "running": len(self._running),
            "kv_free_tokens": capacity.free_tokens,
            "kv_used_tokens": capacity.used_tokens,
            "kv_kept_tokens": self.prefixes.kept_tokens,
            "kept_sequences": self.prefixes.kept_sequences,
        }

    def add(self, jobs: Iterable[Job]) -> None:
        """Queue jobs."""
        for job in jobs:
            if self._closed:
                self.queued.pop(job, None)
                job.fail(closed())
            elif not job.done:
                self._arrivals += 1
                job.arrival = self._arrivals
                self._timed += job.deadline < math.inf
                insort(self._waiting, _Place(job))

    def cancel(self, jobs: Iterable[Job]) -> None:
        """End jobs, with what they have."""
        for job in jobs:
            try:
                if not job.done:
                    job.cancel()
            except Exception as error:  # for example of a decoder: it must end nevertheless
                job.fail(failed(error, self._info.backend))
            self._leave_queue(job)
        try:
            self._take_out()
        except Exception as error:
            self._fail_all(error)

    def step(self) -> None:
        """Advance everything that fits by one step. Errors end the jobs that they belong to."""
        try:
            self._end_early()
            self._admit()
            self._advance(self._assemble())
        except BaseException as error:  # whatever it is, nobody may wait for ever
            self._fail_all(error)

    def close(self) -> None:
        """End every job with ClosedError and close the Runner."""
        self._closed = True
        try:
            self._runner.close()
        finally:
            self.prefixes.forget()
            for job in self._all():
                job.seq = None
                job.fail(closed())
            self._running.clear()
            self._waiting.clear()
            self.queued.clear()
            self.room.ring()

    def clear_cache(self) -> None:
        """Free what is kept of ended requests."""
        self.prefixes.clear()

    def _end_early(self) -> None:
        """End jobs whose deadline has come."""
        if not self._timed:
            return
        now = time.monotonic()
        overdue = [job for job in self._all() if job.deadline <= now]
        for job in overdue:
            job.fail(late())
        if overdue:
            self._take_out()

    def _all(self) -> list[Job]:
        return [*self._running, *(place.job for place in self._waiting)]

    def _take_out(self) -> None:
        """Release jobs that are done."""
        out = [place.job for place in self._waiting if place.job.done]
        if out:
            self._waiting = [place for place in self._waiting if not place.job.done]
        for job in out:
            self._leave_queue(job)
            self._end(job)
        for job in [job for job in self._running if job.done]:
            self._release(job)

    def _leave_queue(self, job: Job) -> None:
        if job in self.queued:
            self.queued.pop(job, None)  # after the end, commands come from several threads
            self.room.ring()

    def _end(self, job: Job) -> None:
        self._timed -= job.deadline < math.inf
        self._recorder.ended(job)

    def _admit(self) -> None:
        """Start waiting jobs, in order, while sequences and memory last. One that runs alone is always let in."""
        if not self._waiting:
            return
        free = self._runner.capacity().free_tokens - sum(job.pending for job in self._running)
        started = set()
        try:
            looks = LOOKAHEAD
            for place in self._waiting:
                if len(self._running) >= self._info.max_sequences or not looks:
                    break
                job = place.job
                if job.held_up:
                    continue
                looks -= 1
                need = self._start(job, free)
                if need is None:
                    continue
                if need < 0:
                    break
                free -= need
                started.add(place)
        finally:
            if started:
                self._waiting = [place for place in self._waiting if place not in started]

    def _start(self, job: Job, free: int) -> int | None:
        """Give a job its sequence; return the tokens it needs, -1 if nobody can start now, None if it alone waits."""
        fork, wait = (job.shared, False) if job.shared else self.prefixes.find(job)
        if wait:
            return None
        need = len(job.tokens) - (fork.length if fork else 0) + self._info.page_size
        while self._running and need > free:
            before = self._runner.capacity().free_tokens
            if (fork and self.prefixes.is_next(fork.seq)) or not self.prefixes.evict():
                return -1
            free += self._runner.capacity().free_tokens - before
        try:
            job.seq = self._runner.fork(*fork) if fork else self._runner.open()
        except CapacityError as error:  # for instance since a fork is a copy here
            if self._running or self.prefixes.evict():
                return -1
            job.fail(alone(error, len(job.tokens)))
            self._take_out()
            return None
        job.computed = job.cached = fork.length if fork else 0
        self._running.append(job)
        self.prefixes.enter(job)
        self._leave_queue(job)
        self._recorder.started(job)
        return need

    def _assemble(self) -> Batch:
        """Take the next token of everyone who is past the prompt, then chunks of prompts, up to the budget."""
        decoding = [job for job in self._running if job.pending == 1]
        left = self._budget.tokens(len(decoding))
        batch = self._next_tokens(decoding, left)
        left -= len(batch)
        if len(decoding) < len(self._running):
            batch += self._chunks(left)
        elif self._speculation is not None:
            batch = self._draft(batch, left, self._speculation)
        return batch

    def _next_tokens(self, decoding: list[Job], left: int) -> Batch:
        """Take turns where a step has no room for everybody."""
        if len(decoding) > left:
            decoding.sort(key=lambda job: (-job.priority, -job.passed_over))
            for job in decoding[left:]:
                job.passed_over += left
            for job in decoding[:left]:
                job.passed_over = 0
        return [(job, 1) for job in decoding[:left]]

    def _chunks(self, left: int) -> Batch:
        """Share tokens out to prompts: the one with least to do first, but what others got counts as done.

        So a short prompt does not wait for a long one, and a long one does not wait for ever.
        """
        prompts = [job for job in self._running if job.pending > 1]
        prompts.sort(key=lambda job: (-job.priority, job.pending - job.passed_over))
        chunks = []
        given = 0
        for job in prompts:
            count = min(job.next_count, left - given)
            if count > 0:
                chunks.append((job, count))
                given += count
            else:
                job.passed_over += given
        return chunks

    def _draft(self, batch: Batch, left: int, speculation: Speculation) -> Batch:
        """Let jobs guess what follows, where the step has room."""
        speculation.prepare([job for job, _ in batch], left)
        speculation.begin(len(batch))
        drafted = []
        for job, count in batch:
            drafts = job.drafts(left)
            left -= drafts
            drafted.append((job, count + drafts))
        return drafted

    def _advance(self, batch: Batch) -> None:
        while batch:
            began = time.perf_counter()
            try:
                steps, results = self._stepper.run(batch)
            except CapacityError as error:
                if any(count > job.pending for job, count in batch):
                    batch = _without_drafts(batch)
                    continue
                if self.prefixes.evict():
                    continue
                victim = self._make_room(error)
                batch = [entry for entry in batch if entry[0] is not victim]
            except Exception as error:
                self._isolate(batch, error)
                return
            else:
                seconds = time.perf_counter() - began
                tokens = sum(len(step.token_ids) for step in steps)
                self._budget.note(tokens, seconds)
                if self._speculation is not None and all(job.pending == 1 for job, _ in batch):
                    self._speculation.costs.note(tokens, seconds)
                self._recorder.stepped(len(steps), tokens, seconds)
                self._accept(batch, steps, results)
                return

    def _accept(self, batch: Batch, steps: list[Step], results: list[StepResult]) -> None:
        over = False
        for (job, count), step, result in zip(batch, steps, results, strict=True):
            held = job.computed + len(step.token_ids)
            try:
                job.accept(count, result)
            except Exception as error:  # for example logits that are NaN: the others are sound
                job.fail(failed(error, self._info.backend))
            if job.computed != held:  # drafts were wrong, or the answer could not be taken
                self._runner.truncate(step.seq, job.computed)
            over = over or job.done
        if over:
            self._take_out()

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """Find out whose step it is that fails: the others go on."""
        self._resync()
        needed = _without_drafts(batch)
        if len(batch) == 1 and needed == batch:
            batch[0][0].fail(failed(error, self._info.backend))
            self._take_out()
            return
        for entry in needed:
            if entry[0].seq is not None:  # it may have made room for an earlier one
                self._advance([entry])

    def _make_room(self, error: CapacityError) -> Job:
        """Send the youngest of the lowest priority back to wait; fail it if it is the only one."""
        victim = min(self._running, key=lambda job: (job.priority, -job.arrival))
        if len(self._running) == 1:
            victim.fail(alone(error, len(victim.tokens)))
        self._release(victim)
        if not victim.done:
            self._recorder.preempted()
            insort(self._waiting, _Place(victim))
        return victim

    def _release(self, job: Job) -> None:
        self._running.remove(job)
        seq, job.seq = job.seq, None
        try:
            if seq is not None and not self.prefixes.leave(job, seq):
                self._runner.free(seq)
        finally:
            job.computed = 0
            if job.done:
                self._end(job)

    def _resync(self) -> None:
        """After a step that failed: make every sequence hold what its job believes it holds."""
        for job in self._running:
            if job.seq is not None and self._runner.length(job.seq) != job.computed:
                self._runner.truncate(job.seq, job.computed)

    def _fail_all(self, error: BaseException) -> None:
        for job in self._all():
            job.fail(failed(error, self._info.backend))
        try:
            self._take_out()
        except Exception:  # the Runner is beyond repair: forget what it holds
            for job in self._running:
                job.seq = None
                self._end(job)
            self._running.clear()
            self.prefixes.forget()


class _Place:
    """A job in the line: higher priority first, then who came first."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._rank = (-job.priority, job.arrival)

    def __lt__(self, other: _Place) -> bool:
        return self._rank < other._rank


def _without_drafts(batch: Batch) -> Batch:
    return [(job, min(count, job.pending)) for job, count in batch]
