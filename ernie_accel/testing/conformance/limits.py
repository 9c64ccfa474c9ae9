"""Checks of limits, errors and bookkeeping: a refused call must leave everything as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends import registry
from ernie_accel.backends.base import Runner, RunnerInfo, Select, Step
from ernie_accel.backends.capabilities import Parks
from ernie_accel.errors import ArgumentError, CapacityError, ClosedError, ContextLengthError, UnsupportedError
from ernie_accel.testing.conformance.results import fresh
from ernie_accel.testing.conformance.subject import Subject, append, require, require_error


def check_info(subject: Subject, config: ModelConfig) -> None:
    """The fixed properties fit the model and the options."""
    with subject.runner(config, max_batch=3, max_context=100) as runner:
        info = runner.info
        require(isinstance(info, RunnerInfo), "info is a RunnerInfo")
        require(info.backend == subject.backend.name, f"info.backend is {info.backend!r}")
        sizes = (info.vocab_size, info.hidden_size, info.max_context, info.max_sequences)
        wanted = (config.vocab_size, config.hidden_size, 100, 3)
        require(sizes == wanted, f"vocab, hidden, context, sequences are {sizes}, expected {wanted}")
        offered = registry.precisions(subject.backend) or (info.precision,)
        require(info.precision in offered, f"info.precision is {info.precision!r}")
        require(
            info.page_size >= 1 and info.max_step_tokens >= 1, "page_size and max_step_tokens are at least 1"
        )


def check_bookkeeping(subject: Subject, config: ModelConfig) -> None:
    """Lengths count tokens, capacity falls and comes back, ids of sequences are not used twice."""
    with subject.runner(config) as runner:
        before = runner.capacity()
        require(before.used_tokens == 0, "a new runner uses no cache")
        first = runner.open()
        require(runner.length(first) == 0, "a new sequence is empty")
        append(runner, first, subject.ids(config, 40))
        require(runner.length(first) == 40, "length counts what was appended")
        after = runner.capacity()
        require(40 <= after.used_tokens <= 40 + runner.info.page_size, f"40 tokens use {after.used_tokens}")
        require(after.free_tokens <= before.free_tokens - 40, "tokens in use are not free")
        runner.free(first)
        require(runner.capacity() == before, "free gives the cache back")
        require(runner.open() != first, "ids of sequences are never used again")


def check_no_leak(subject: Subject, config: ModelConfig) -> None:
    """Forking, cutting and freeing many times leaves the cache as empty as it was."""
    rng, ids = subject.rng(), subject.ids(config, 40)
    with subject.runner(config) as runner:
        before = runner.capacity()
        for _ in range(30):
            seqs = [runner.open()]
            append(runner, seqs[0], ids)
            for _ in range(3):
                seqs.append(runner.fork(seqs[-1], int(rng.integers(0, runner.length(seqs[-1]) + 1))))
                runner.truncate(seqs[-1], int(rng.integers(0, runner.length(seqs[-1]) + 1)))
                append(runner, seqs[-1], ids[: int(rng.integers(1, 20))])
            for seq in rng.permutation(seqs):
                runner.free(int(seq))
        require(runner.capacity() == before, f"capacity was {before}, is {runner.capacity()}")


def check_sequence_limit(subject: Subject, config: ModelConfig) -> None:
    """One sequence more than ``max_batch`` is refused, by open and by fork, until one is freed."""
    with subject.runner(config, max_batch=2) as runner:
        first, second = runner.open(), runner.open()
        append(runner, first, subject.ids(config, 5))
        with require_error(CapacityError, "open beyond max_batch"):
            runner.open()
        with require_error(CapacityError, "fork beyond max_batch"):
            runner.fork(first, 5)
        runner.free(second)
        require(runner.length(runner.fork(first, 5)) == 5, "a freed place can be used")


def check_context_limit(subject: Subject, config: ModelConfig) -> None:
    """A sequence may fill the context and no more; the whole step is refused."""
    ids = subject.ids(config, 40)
    with subject.runner(config, max_context=40) as runner:
        full, other = runner.open(), runner.open()
        append(runner, full, ids[:39])
        append(runner, other, ids[:3])
        with require_error(ContextLengthError, "a step beyond the context"):
            runner.forward([Step(other, ids[3:5]), Step(full, ids[:2])])
        require([runner.length(s) for s in (full, other)] == [39, 3], "a refused step appends nothing")
        actual = append(runner, other, ids[3:6])
        subject.agree(runner, actual, fresh(runner, ids[:3], ids[3:6]), "after a refused step")
        append(runner, full, ids[39:])
        with require_error(ContextLengthError, "a step after the last position"):
            runner.forward([Step(full, ids[:1])])


def check_cache_limit(subject: Subject, config: ModelConfig) -> None:
    """When the cache is used up, the whole step is refused; freeing a sequence makes room."""
    need = subject.backend.estimate(config, subject.options)
    limit = 200 * need.kv_per_token
    with subject.runner(config, max_batch=8, memory_limit=limit) as runner:
        require(runner.capacity().free_tokens < 8 * runner.info.max_context, "memory_limit limits the cache")
        ids = subject.ids(config, 30)
        small = runner.open()
        append(runner, small, ids[:4])
        seqs = fill(runner, ids)
        lengths, capacity = [runner.length(s) for s in seqs], runner.capacity()
        with require_error(CapacityError, "a step beyond the cache"):
            runner.forward([Step(small, ids[4:5]), *(Step(s, ids) for s in seqs)])
        require([runner.length(s) for s in seqs] == lengths, "a refused step appends nothing")
        require(runner.length(small) == 4, "a refused step appends nothing, to any sequence")
        require(runner.capacity() == capacity, "a refused step takes no cache")
        runner.free(seqs[-1])
        actual = append(runner, small, ids[4:6])
        for seq in seqs[:-1]:
            runner.free(seq)
        subject.agree(runner, actual, fresh(runner, ids[:4], ids[4:6]), "after a refused step")


def fill(runner: Runner, ids: Sequence[int]) -> list[int]:
    """Open sequences and append ``ids`` to them until the cache has no room for the next."""
    seqs: list[int] = []
    while len(seqs) < runner.info.max_sequences - 1:
        seqs.append(runner.open())
        while runner.length(seqs[-1]) + len(ids) <= runner.info.max_context:
            try:
                append(runner, seqs[-1], ids)
            except CapacityError:
                return seqs
    raise AssertionError("the cache never runs out")


def check_step_limit(subject: Subject, config: ModelConfig) -> None:
    """More tokens than ``max_step_tokens`` in one step are refused."""
    with subject.runner(config) as runner:
        size = min(runner.info.max_context, runner.info.max_step_tokens)
        count = runner.info.max_step_tokens // size + 1
        if count > runner.info.max_sequences:
            return  # sequences that fill their contexts cannot exceed the limit
        seqs = [runner.open() for _ in range(count)]
        with require_error(ArgumentError, "a step of too many tokens"):
            runner.forward([Step(s, [0] * size, 0) for s in seqs])
        require(all(runner.length(s) == 0 for s in seqs), "a refused step appends nothing")


def check_arguments(subject: Subject, config: ModelConfig) -> None:
    """Wrong arguments are refused by name and change nothing."""
    with subject.runner(config) as runner:
        a, b = runner.open(), runner.open()
        append(runner, a, [1, 2, 3])
        wrong: dict[str, list[Step]] = {
            "an id past the vocabulary": [Step(b, [1]), Step(a, [config.vocab_size])],
            "a negative id": [Step(b, [1]), Step(a, [-1])],
            "no ids": [Step(b, [1]), Step(a, [])],
            "more rows than ids": [Step(b, [1]), Step(a, [1, 2], 3)],
            "negative rows": [Step(a, [1], -1)],
            "a sequence twice": [Step(a, [1]), Step(a, [2])],
            "an unknown sequence": [Step(b, [1]), Step(a + b + 1000, [1])],
        }
        for what, steps in wrong.items():
            with require_error(ArgumentError, what):
                runner.forward(steps)
            require((runner.length(a), runner.length(b)) == (3, 0), f"{what}: appended something")
        require(runner.forward([]) == [], "an empty batch is no error")


def check_lengths(subject: Subject, config: ModelConfig) -> None:
    """Forking and cutting take lengths that exist; a freed sequence is unknown."""
    with subject.runner(config) as runner:
        seq = runner.open()
        append(runner, seq, [1, 2, 3])
        for length in (-1, 4):
            with require_error(ArgumentError, f"truncate to {length} of 3"):
                runner.truncate(seq, length)
            with require_error(ArgumentError, f"fork at {length} of 3"):
                runner.fork(seq, length)
        require(runner.length(seq) == 3, "a refused truncate changes nothing")
        runner.free(seq)
        with require_error(ArgumentError, "length of a freed sequence"):
            runner.length(seq)
        with require_error(ArgumentError, "free of a freed sequence"):
            runner.free(seq)


def check_unsupported(subject: Subject, config: ModelConfig) -> None:
    """An output that is not among the capabilities is refused; ``select`` needs its settings."""
    with subject.runner(config) as runner:
        seq, capabilities = runner.open(), runner.info.capabilities
        if "hidden" not in capabilities:
            with require_error(UnsupportedError, "hidden rows"):
                runner.forward([Step(seq, [1], 1, "hidden")])
        if "select" not in capabilities:
            with require_error(UnsupportedError, "select"):
                runner.forward([Step(seq, [1], 1, "select", Select())])
        else:
            with require_error(ArgumentError, "select without settings"):
                runner.forward([Step(seq, [1], 1, "select")])
        require(runner.length(seq) == 0, "a refused step appends nothing")


def check_select_errors(subject: Subject, config: ModelConfig) -> None:
    """A draw that cannot be made refuses the whole step: everything masked out, or arrays that do not fit."""
    words, one = (config.vocab_size + 31) // 32, np.ones(1, np.int32)
    wrong = {
        "everything masked out": Select(mask=np.zeros(words, np.uint32)),
        "a mask of the wrong size": Select(mask=np.ones(words + 1, np.uint32)),
        "an unknown id in seen": Select(seen=one * config.vocab_size, counts=one),
        "counts of the wrong size": Select(seen=one, counts=np.ones(2, np.int32)),
        "a temperature that is no number": Select(temperature=math.nan),
        "a temperature without end": Select(temperature=math.inf, mask=np.full(words, 1, np.uint32)),
    }
    with subject.runner(config) as runner:
        a, b = runner.open(), runner.open()
        append(runner, b, [1, 2, 3])
        for what, select in wrong.items():
            with require_error(ArgumentError, what):
                runner.forward([Step(a, [4]), Step(b, [4], 1, "select", select)])
            require((runner.length(a), runner.length(b)) == (0, 3), f"{what}: appended something")
        actual = append(runner, b, [5, 6])
        subject.agree(runner, actual, fresh(runner, [1, 2, 3], [5, 6]), "after a refused draw")


def check_park(subject: Subject, config: ModelConfig) -> None:
    """A parked sequence is none of the open ones, takes no tokens, and can be forked, cut and freed."""
    with subject.runner(config) as runner:
        assert isinstance(runner, Parks)
        seq = runner.open()
        append(runner, seq, [1, 2, 3, 4, 5])
        runner.park(seq)
        runner.park(seq)
        others = [runner.open() for _ in range(runner.info.max_sequences)]
        for other in others:
            runner.free(other)
        with require_error(ArgumentError, "a step of a parked sequence"):
            runner.forward([Step(seq, [6])])
        runner.truncate(seq, 4)
        actual = append(runner, runner.fork(seq, 3), [7, 8])
        subject.agree(runner, actual, fresh(runner, [1, 2, 3], [7, 8]), "after a fork of a parked sequence")
        require(runner.length(seq) == 4, "a fork leaves the parked sequence alone")
        runner.free(seq)
        with require_error(ArgumentError, "length of a freed sequence"):
            runner.length(seq)


def check_close(subject: Subject, config: ModelConfig) -> None:
    """``close`` may come twice; what comes after it is refused."""
    with subject.runner(config) as runner:
        seq = runner.open()
        append(runner, seq, [1, 2])
        runner.close()
        runner.close()
        with require_error(ClosedError, "open after close"):
            runner.open()
        with require_error(ClosedError, "forward after close"):
            runner.forward([Step(seq, [1])])
