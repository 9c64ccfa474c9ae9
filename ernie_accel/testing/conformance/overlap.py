"""Checks of the capability ``overlap``: a step that was started gives what ``forward`` gives, or leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import Runner, Step, StepResult
from ernie_accel.backends.capabilities import Overlaps, Parks, Pending, Profiles
from ernie_accel.errors import ArgumentError, CapacityError, ClosedError, ContextLengthError
from ernie_accel.testing.conformance.results import check_logprobs, fresh, random_select
from ernie_accel.testing.conformance.subject import Subject, append, require, require_error

PROMPTS = (1, 20, 41)


class Overlapping(Runner, Overlaps):
    """A Runner with the capability."""


@contextmanager
def overlapping(subject: Subject, config: ModelConfig, **overrides: Any) -> Iterator[Overlapping]:
    """Open a runner that can start steps."""
    with subject.runner(config, **overrides) as runner:
        require(isinstance(runner, Overlaps), "a runner with the capability overlap has start()")
        yield runner  # type: ignore[misc]


def finish(pending: Pending) -> list[StepResult]:
    """Take the result of steps that lack nothing."""
    with pending:
        return pending.result({})


def check_start(subject: Subject, config: ModelConfig) -> None:
    """A started step appends and answers what ``forward`` does, again and again, beside steps of that kind."""
    prompts = [subject.ids(config, n, stream=n) for n in PROMPTS]
    tails = [subject.ids(config, n, stream=100 + n) for n in (3, 1, 17)]
    with overlapping(subject, config) as runner:
        require(finish(runner.start([])) == [], "no steps have no results")
        for round_ in range(3):
            a, b = [runner.open() for _ in prompts], [runner.open() for _ in prompts]
            for ids in (prompts, tails):
                expected = runner.forward([Step(s, i, len(i)) for s, i in zip(a, ids, strict=True)])
                started = finish(runner.start([Step(s, i, len(i)) for s, i in zip(b, ids, strict=True)]))
                for actual, wanted in zip(started, expected, strict=True):
                    assert actual.logits is not None
                    assert wanted.logits is not None
                    subject.agree(runner, actual.logits, wanted.logits, f"a started step, round {round_}")
            require([runner.length(s) for s in a] == [runner.length(s) for s in b], "a started step appends")
            (nothing,) = finish(runner.start([Step(b[0], [1], 0)]))
            require(nothing == StepResult(), "a started step of no rows has no answer")
            for seq in (*a, *b):
                runner.free(seq)


def check_late_select(subject: Subject, config: ModelConfig) -> None:
    """How a step draws may be said at its end, for some steps of a batch or all: the same is drawn."""
    rng = subject.rng()
    prompts = [subject.ids(config, n, stream=n) for n in PROMPTS]
    with overlapping(subject, config) as runner:
        for round_ in range(20):
            selects = [random_select(rng, config.vocab_size) for _ in prompts]
            late = {i for i in range(3) if round_ == 0 or rng.random() < 0.6}
            early, started = ([runner.open() for _ in prompts] for _ in range(2))
            rows = [int(rng.integers(1, min(len(ids), 4) + 1)) for ids in prompts]
            zipped = list(zip(prompts, rows, selects, strict=True))
            steps = [Step(s, i, r, "select", c) for s, (i, r, c) in zip(early, zipped, strict=True)]
            expected = runner.forward(steps)
            begun = [
                replace(step, seq=s, select=None if i in late else step.select)
                for i, (s, step) in enumerate(zip(started, steps, strict=True))
            ]
            with runner.start(begun) as pending:
                actual = pending.result({i: selects[i] for i in sorted(late)})
            for found, wanted in zip(actual, expected, strict=True):
                what = f"round {round_}, late {late}: drew {found.token_ids}, expected {wanted.token_ids}"
                require(found.token_ids == wanted.token_ids and found.logits is None, what)
                check_logprobs(found.logprobs, wanted.logprobs)
            for seq in (*early, *started):
                runner.free(seq)


def check_given_up(subject: Subject, config: ModelConfig) -> None:
    """A step that was closed, or whose caller failed, leaves every sequence and the cache as they were."""
    ids, tail = subject.ids(config, 30), subject.ids(config, 20, stream=1)
    with overlapping(subject, config) as runner:
        seq, other = runner.open(), runner.open()
        append(runner, seq, ids)
        before = runner.capacity()

        def unchanged(what: str) -> None:
            require([runner.length(seq), runner.length(other)] == [30, 0], f"{what}: nothing is appended")
            require(runner.capacity() == before, f"{what}: no cache is taken")

        pending = runner.start([Step(seq, tail, 20), Step(other, ids, 1)])
        pending.close()
        unchanged("a step that was closed")
        with require_error(ArgumentError, "the result of a step that was closed"):
            pending.result({})
        try:
            with runner.start([Step(seq, tail, 20), Step(other, ids, 1)]):
                raise KeyError("of the caller")
        except KeyError:
            unchanged("a caller that failed")
        pending.close()  # harmless: also beside another step
        with runner.start([Step(seq, tail, 20)]) as second:
            pending.close()
            (result,) = second.result({})
            second.close()
        require(runner.length(seq) == 50, "closing a step that is over changes nothing")
        with require_error(ArgumentError, "a result that was taken"):
            second.result({})
        assert result.logits is not None
        subject.agree(runner, result.logits, fresh(runner, ids, tail), "after steps that were given up")


def check_start_errors(subject: Subject, config: ModelConfig) -> None:
    """What ``forward`` refuses is refused at the start, and nothing has begun."""
    ids = subject.ids(config, 40)
    with overlapping(subject, config, max_context=40) as runner:
        seq = runner.open()
        append(runner, seq, ids[:30])
        before = runner.capacity()
        wrong: list[list[Step]] = [
            [Step(seq, [])],
            [Step(seq, [config.vocab_size])],
            [Step(seq, ids[:1]), Step(seq, ids[:1])],
            [Step(seq + 1000, ids[:1])],
            [Step(seq, ids[:1], 2)],
        ]
        for steps in wrong:
            with require_error(ArgumentError, f"start({steps})"):
                runner.start(steps)
        with require_error(ContextLengthError, "a started step beyond the context"):
            runner.start([Step(seq, ids[:11])])
        require(runner.capacity() == before and runner.length(seq) == 30, "a refused start changes nothing")
        finish(runner.start([Step(seq, ids[30:])]))
        require(runner.length(seq) == 40, "after refusals a step can be started")


def check_start_memory(subject: Subject, config: ModelConfig) -> None:
    """Where the cache is too small, the start is refused as a whole."""
    limit = 64 * subject.backend.estimate(config, subject.options).kv_per_token
    ids = subject.ids(config, 64)
    with overlapping(subject, config, memory_limit=limit) as runner:
        before = runner.capacity()
        seqs = [runner.open(), runner.open()]
        with require_error(CapacityError, "a started step beyond the cache"):
            runner.start([Step(s, ids[: before.free_tokens // 2 + 16]) for s in seqs])
        require([runner.length(s) for s in seqs] == [0, 0], "a refused start appends nothing")
        require(runner.capacity() == before, "a refused start takes no cache")


def check_late_select_errors(subject: Subject, config: ModelConfig) -> None:
    """A Select that is missing, one too many or wrong ends the step, which leaves no trace."""
    ids = subject.ids(config, 10)
    good = random_select(subject.rng(), config.vocab_size)
    wrong = replace(good, logprobs=-2)
    with overlapping(subject, config) as runner:
        a, b = runner.open(), runner.open()
        before = runner.capacity()
        for selects in ({}, {1: good}, {0: good, 1: good}, {0: wrong}, {0: good, 7: good}, {-1: good}):
            batch = [Step(a, ids, 1, "select"), Step(b, ids, 1)]
            with require_error(ArgumentError, f"selects for the steps {sorted(selects)}"):
                runner.start(batch).result(selects)
            require(runner.length(a) == runner.length(b) == 0, "a step without its select appends nothing")
            require(runner.capacity() == before, "a step without its select takes no cache")
        with require_error(ArgumentError, "a late Select without start"):
            runner.forward([Step(a, ids, 1, "select")])


def check_under_way(subject: Subject, config: ModelConfig) -> None:
    """Beside a step every call is refused but ``close``, and the step goes on."""
    ids = subject.ids(config, 30)
    with overlapping(subject, config) as runner:
        seq, other = runner.open(), runner.open()
        append(runner, other, ids)
        refused: dict[str, Callable[[], object]] = {
            "open": runner.open,
            "free": lambda: runner.free(other),
            "fork": lambda: runner.fork(other, 3),
            "truncate": lambda: runner.truncate(other, 3),
            "length": lambda: runner.length(other),
            "forward": lambda: runner.forward([Step(other, ids)]),
            "capacity": runner.capacity,
            "start": lambda: runner.start([Step(other, ids)]),
        }
        if isinstance(runner, Parks) and "park" in runner.info.capabilities:
            refused["park"] = lambda: runner.park(other)
        if isinstance(runner, Profiles) and "profile" in runner.info.capabilities:
            refused["profile"] = lambda: runner.profile(True)
        with runner.start([Step(seq, ids, 30)]) as pending:
            for name, call in refused.items():
                with require_error(ArgumentError, f"{name} beside a step"):
                    call()
            (result,) = pending.result({})
        require([runner.length(seq), runner.length(other)] == [30, 30], "refused calls change nothing")
        assert result.logits is not None
        subject.agree(runner, result.logits, fresh(runner, [], ids), "a step beside refused calls")
        last = runner.start([Step(seq, ids)])
        runner.close()
        last.close()
        with require_error(ClosedError, "a result after close"):
            last.result({})
    with require_error(ClosedError, "start after close"):
        runner.start([])
