"""Checks of the capability ``draft``: guesses depend on the tokens of a sequence alone, and change nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import LoadOptions, Runner, Step
from ernie_accel.backends.capabilities import Drafts, Parks
from ernie_accel.backends.reference import ReferenceBackend
from ernie_accel.errors import ArgumentError, CapacityError, ClosedError, ContextLengthError
from ernie_accel.testing.conformance.subject import Subject, append, require, require_error

NEXT = 7
"""The token that is drawn and not computed, in most checks."""

PROMPTS = (1, 2, 15, 16, 17, 100, 300)


class Drafting(Runner, Drafts):
    """A Runner with the capability."""


@contextmanager
def drafting(subject: Subject, config: ModelConfig, **overrides: Any) -> Iterator[Drafting]:
    """Open a runner with multi-token prediction."""
    with subject.runner(config, multi_token=True, **overrides) as runner:
        require(isinstance(runner, Drafts), "a runner with the capability draft has draft()")
        yield runner  # type: ignore[misc]


def guess(runner: Drafting, seq: int, depth: int, token: int = NEXT) -> tuple[int, ...]:
    """Return guesses of one sequence, however long the runner catches up."""
    for _ in range(1 + runner.length(seq)):
        (ids,) = runner.draft([seq], [token], depth)
        if ids:
            require(len(ids) == depth, f"{len(ids)} guesses of a depth of {depth}")
            return ids
    raise AssertionError("draft() never catches up")


def fresh_guess(runner: Drafting, ids: Sequence[int], depth: int, token: int = NEXT) -> tuple[int, ...]:
    """Return guesses after ids in a sequence of its own."""
    seq = runner.open()
    append(runner, seq, ids)
    guesses = guess(runner, seq, depth, token)
    runner.free(seq)
    return guesses


def check_drafts(subject: Subject, config: ModelConfig) -> None:
    """Guesses equal those of ``reference``, where logits are as close as float32 brings them."""
    if subject.tolerance is None or subject.tolerance.absolute is None:
        return
    reference = replace(subject, backend=ReferenceBackend(), options=LoadOptions())
    with drafting(subject, config) as runner, drafting(reference, config) as judge:
        for count in PROMPTS:
            ids = subject.ids(config, count, stream=count)
            for depth in (1, 4):
                actual, expected = fresh_guess(runner, ids, depth), fresh_guess(judge, ids, depth)
                require(actual == expected, f"guesses after {count} ids are {actual}, expected {expected}")


def check_drafts_and_steps(subject: Subject, config: ModelConfig) -> None:
    """Steps give the bits that they give without, and those after drafts the bits of those before."""
    ids, tail = subject.ids(config, 45), subject.ids(config, 9, stream=1)
    with subject.runner(config) as plain:
        expected = append(plain, plain.open(), [*ids, *tail])
        with drafting(subject, config) as runner:
            seq = runner.open()
            rows = append(runner, seq, ids)
            subject.agree(plain, rows, expected[:45], "a step of a runner with drafts")
            guess(runner, seq, 5)
            require(runner.length(seq) == 45, "drafts append nothing")
            subject.agree(plain, append(runner, seq, tail), expected[45:], "a step after drafts")


def check_drafts_in_pieces(subject: Subject, config: ModelConfig) -> None:
    """A prompt in pieces, with drafts between them that say other tokens, guesses what it guesses in one piece."""
    ids = subject.ids(config, 90)
    with drafting(subject, config) as runner:
        whole = fresh_guess(runner, ids, 3)
        for cuts in ([1], [89], [16, 32, 48], [15, 16, 17, 47], list(range(1, 90))):
            seq = runner.open()
            for first, last in pairwise([0, *cuts, 90]):
                append(runner, seq, ids[first:last])
                if last % 3 != 1:
                    guess(runner, seq, 1 + last % 3, token=last % config.vocab_size)
            require(guess(runner, seq, 3) == whole, f"guesses after a prompt cut at {cuts}")
            require(guess(runner, seq, 3) == whole, "the same question has the same answer")
            runner.free(seq)


def check_drafts_after_forks(subject: Subject, config: ModelConfig) -> None:
    """Forks and cuts guess what their tokens would in a sequence of their own; neither side disturbs the other."""
    ids, tail_a, tail_b = (subject.ids(config, n, stream=n) for n in (50, 20, 21))
    with drafting(subject, config) as runner:
        for length in (0, 1, 15, 16, 17, 32, 37, 50):
            parent = runner.open()
            append(runner, parent, ids)
            guess(runner, parent, 2)
            child = runner.fork(parent, length)
            before = guess(runner, child, 2) if length else ()
            append(runner, child, tail_a)
            guess(runner, child, 2)
            if isinstance(runner, Parks) and "park" in runner.info.capabilities:
                runner.park(parent)
                parent = runner.fork(parent, 50)
            append(runner, parent, tail_b)
            what = f"after a fork at {length}"
            require(not length or before == fresh_guess(runner, ids[:length], 2), f"a fresh fork {what}")
            child_ids, parent_ids = [*ids[:length], *tail_a], [*ids, *tail_b]
            require(guess(runner, child, 3) == fresh_guess(runner, child_ids, 3), f"the child {what}")
            require(guess(runner, parent, 3) == fresh_guess(runner, parent_ids, 3), f"the parent {what}")
            runner.truncate(parent, max(1, length))
            kept = ids[: max(1, length)]
            require(guess(runner, parent, 3) == fresh_guess(runner, kept, 3), f"the parent, cut, {what}")
            append(runner, parent, tail_a)
            require(
                guess(runner, parent, 3) == fresh_guess(runner, [*kept, *tail_a], 3), f"cut and grown {what}"
            )
            for seq in (parent, child):
                runner.free(seq)


def check_drafts_in_a_batch(subject: Subject, config: ModelConfig) -> None:
    """Many sequences in one call, some with much to catch up with, guess what each guesses alone."""
    prompts = [subject.ids(config, n, stream=n) for n in (1, 40, 7, 90, 16)]
    following = [3, 5, 7, 9, 11]
    with drafting(subject, config) as runner:
        alone = [fresh_guess(runner, ids, 4, token) for ids, token in zip(prompts, following, strict=True)]
        seqs = [runner.open() for _ in prompts]
        for seq, ids in zip(seqs, prompts, strict=True):
            append(runner, seq, ids)
        guess(runner, seqs[1], 1)
        order = [2, 0, 4, 1, 3]
        wanted = [alone[i] for i in order]
        for _ in range(200):
            found = runner.draft([seqs[i] for i in order], [following[i] for i in order], 4)
            require(len(found) == 5, "one tuple for each sequence")
            require(
                all(f in ((), w) for f, w in zip(found, wanted, strict=True)), f"{found}, expected {wanted}"
            )
            if all(found):
                return
    raise AssertionError("draft() never catches up")


def check_draft_errors(subject: Subject, config: ModelConfig) -> None:
    """Wrong arguments are refused by name and change nothing."""
    ids = subject.ids(config, 30)
    with drafting(subject, config, max_context=40) as runner:
        a, empty = runner.open(), runner.open()
        append(runner, a, ids)
        expected = guess(runner, a, 3)
        before = runner.capacity()
        wrong: dict[str, tuple[list[int], list[int], int]] = {
            "an empty sequence": ([a, empty], [1, 1], 1),
            "an unknown sequence": ([a, a + empty + 1000], [1, 1], 1),
            "a sequence twice": ([a, a], [1, 1], 1),
            "an id past the vocabulary": ([a], [config.vocab_size], 1),
            "a negative id": ([a], [-1], 1),
            "too few ids": ([a], [], 1),
            "no depth": ([a], [1], 0),
        }
        for what, arguments in wrong.items():
            with require_error(ArgumentError, what):
                runner.draft(*arguments)
        with require_error(ContextLengthError, "guesses beyond the context"):
            runner.draft([a], [1], 10)
        require(len(runner.draft([a], [1], 9)[0]) == 9, "guesses up to the end of the context")
        require(runner.capacity() == before, "guesses keep no cache")
        require(guess(runner, a, 3) == expected, "a refused call changes nothing")
        require(runner.draft([], [], 1) == [], "no sequences are no error")
        if isinstance(runner, Parks) and "park" in runner.info.capabilities:
            runner.park(a)
            with require_error(ArgumentError, "a parked sequence"):
                runner.draft([a], [1], 1)
    with require_error(ClosedError, "after close"):
        runner.draft([], [], 1)


def check_draft_memory(subject: Subject, config: ModelConfig) -> None:
    """Where memory is used up, drafts are refused or made, and nothing is lost; freeing gives all of it back."""
    options = replace(subject.options, multi_token=True)
    limit = 64 * subject.backend.estimate(config, options).kv_per_token
    ids = subject.ids(config, 64)
    with drafting(subject, config, memory_limit=limit) as runner:
        before = runner.capacity()
        require(before.free_tokens >= 48, "memory_limit counts what drafts need")
        seqs = [runner.open(), runner.open()]
        append(runner, seqs[0], ids[: before.free_tokens - 16])
        append(runner, seqs[1], ids[:15])
        used = runner.capacity()
        try:
            runner.draft(seqs, [1, 2], 20)
        except CapacityError:
            require(runner.capacity() == used, "a refused call takes no cache")
        require([runner.length(s) for s in seqs] == [before.free_tokens - 16, 15], "drafts append nothing")
        runner.forward([Step(seqs[1], ids[15:16])])
        for seq in seqs:
            runner.free(seq)
        require(runner.capacity() == before, "free gives the cache back")
