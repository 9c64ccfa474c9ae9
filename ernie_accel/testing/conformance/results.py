"""Checks of what a runner computes: against ``reference``, and against itself when the work is cut differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import Runner, Select, Step
from ernie_accel.engine.sampling import select_rows
from ernie_accel.testing.conformance.subject import Array, Subject, answer, append, require
from ernie_accel.types import TokenLogprob

PROMPTS = (1, 2, 17, 100, 300)
"""Lengths: no past, one past position, more than a page of 16, many pages, more than a block of attention."""


def check_logits(subject: Subject, config: ModelConfig) -> None:
    """Raw logits of every position equal those of ``reference``."""
    assert subject.tolerance is not None
    with subject.runner(config) as runner:
        for count in PROMPTS:
            ids = subject.ids(config, count)
            actual = append(runner, runner.open(), ids)
            require(actual.shape == (count, config.vocab_size), f"logits have shape {actual.shape}")
            subject.tolerance.check(actual, subject.expected(config, ids), f"logits of {count} ids")


def check_long_prompt(subject: Subject, config: ModelConfig) -> None:
    """A prompt of 2,000 ids, in steps as large as the runner takes, ends with the logits of ``reference``."""
    assert subject.tolerance is not None
    config = replace(config, max_position_embeddings=2048)
    ids = subject.ids(config, 2000)
    with subject.runner(config) as runner:
        actual = append(runner, runner.open(), ids, rows=50)
    subject.tolerance.check(actual, subject.expected(config, ids)[-50:], "the last 50 of 2,000 ids")


def check_hidden(subject: Subject, config: ModelConfig) -> None:
    """Hidden rows, after the final norm, equal those of ``reference``."""
    assert subject.tolerance is not None
    ids = subject.ids(config, 33)
    with subject.runner(config) as runner:
        actual = append(runner, runner.open(), ids, output="hidden")
        require(actual.shape == (33, config.hidden_size), f"hidden has shape {actual.shape}")
    tolerance = replace(subject.tolerance, argmax=0.0)
    tolerance.check(actual, subject.expected(config, ids, "hidden"), "hidden rows")


def check_rows(subject: Subject, config: ModelConfig) -> None:
    """``rows`` picks the last positions, 0 asks for nothing, and ids may come as an array."""
    ids = subject.ids(config, 21)
    with subject.runner(config) as runner:
        every = append(runner, runner.open(), ids)
        for rows in (0, 1, 5, 21):
            seq = runner.open()
            result = runner.forward([Step(seq, np.array(ids, np.int32), rows)])[0]
            require(runner.length(seq) == 21, "every id is appended, whatever rows is")
            if rows == 0:
                require(result.logits is None and result.hidden is None, "rows=0 asks for nothing")
            else:
                subject.agree(runner, answer(result, "logits"), every[-rows:], f"the last {rows} rows")


def check_chunks(subject: Subject, config: ModelConfig) -> None:
    """A prompt in pieces gives what it gives in one piece."""
    ids = subject.ids(config, 90)
    with subject.runner(config) as runner:
        whole = append(runner, runner.open(), ids)
        for cuts in ([1], [89], [16, 32, 48], [15, 16, 17, 47], list(range(1, 90))):
            actual = in_chunks(runner, ids, cuts)
            subject.agree(runner, actual, whole, f"a prompt cut at {cuts}")


def in_chunks(runner: Runner, ids: Sequence[int], cuts: Sequence[int]) -> Array:
    """Append ids to a new sequence in pieces, free it, and return all rows."""
    seq = runner.open()
    bounds = [0, *cuts, len(ids)]
    parts = [append(runner, seq, ids[a:b]) for a, b in pairwise(bounds)]
    runner.free(seq)
    return np.concatenate(parts)


def check_batch(subject: Subject, config: ModelConfig) -> None:
    """A ragged batch of five, prompts beside single tokens, gives what each gives alone."""
    prompts = [subject.ids(config, n, stream=n) for n in (1, 7, 16, 33, 60)]
    with subject.runner(config) as runner:
        alone = [append(runner, runner.open(), ids) for ids in prompts]
        seqs = [runner.open() for _ in prompts]
        for ids, seq in zip(prompts[3:], seqs[3:], strict=True):
            append(runner, seq, ids[:-1])  # these two only decode in the batch
        steps = [Step(s, ids, len(ids)) for s, ids in zip(seqs[:3], prompts, strict=False)]
        steps += [Step(s, ids[-1:]) for s, ids in zip(seqs[3:], prompts[3:], strict=True)]
        order = [2, 0, 4, 1, 3]
        for i, result in zip(order, runner.forward([steps[i] for i in order]), strict=True):
            actual = answer(result, "logits")
            subject.agree(runner, actual, alone[i][-len(actual) :], f"sequence {i} of a batch")


def check_outputs(subject: Subject, config: ModelConfig) -> None:
    """Sequences of one step may ask for different outputs, and each gets its own."""
    ids = subject.ids(config, 12)
    with subject.runner(config) as runner:
        wanted = append(runner, runner.open(), ids)
        hidden = append(runner, runner.open(), ids, output="hidden")
        steps = [
            Step(runner.open(), ids, 3, "hidden"),
            Step(runner.open(), ids, 0),
            Step(runner.open(), ids, 2),
        ]
        first, none, last = runner.forward(steps)
        subject.agree(runner, answer(first, "hidden"), hidden[-3:], "hidden rows beside logits")
        require(none.logits is None, "rows=0 asks for nothing")
        subject.agree(runner, answer(last, "logits"), wanted[-2:], "logits beside hidden rows")


def check_fork(subject: Subject, config: ModelConfig) -> None:
    """A fork goes on from its part of the parent; neither sees what the other appends, nor its end."""
    ids, tail_a, tail_b = (subject.ids(config, n, stream=n) for n in (50, 20, 21))
    with subject.runner(config) as runner:
        for length in (0, 1, 16, 37, 50):
            parent = runner.open()
            append(runner, parent, ids)
            child = runner.fork(parent, length)
            require(runner.length(child) == length, "a fork holds the length asked for")
            grandchild = runner.fork(child, length)
            got_child = append(runner, child, tail_a)
            got_parent = append(runner, parent, tail_b)
            runner.free(parent)
            runner.free(child)
            got_grandchild = append(runner, grandchild, tail_b)
            runner.free(grandchild)
            what = f"after a fork at {length}"
            subject.agree(runner, got_child, fresh(runner, ids[:length], tail_a), f"the child {what}")
            subject.agree(runner, got_parent, fresh(runner, ids, tail_b), f"the parent {what}")
            subject.agree(
                runner, got_grandchild, fresh(runner, ids[:length], tail_b), f"the grandchild {what}"
            )


def fresh(runner: Runner, head: Sequence[int], tail: Sequence[int]) -> Array:
    """Return the rows of ``tail`` after ``head`` in a sequence of its own."""
    seq = runner.open()
    rows = append(runner, seq, [*head, *tail], rows=len(tail))
    runner.free(seq)
    return rows


def check_truncate(subject: Subject, config: ModelConfig) -> None:
    """A sequence that was cut goes on as if the tail had never been."""
    ids, tail = subject.ids(config, 50, stream=1), subject.ids(config, 20, stream=2)
    with subject.runner(config) as runner:
        for length in (0, 1, 16, 37, 50):
            seq = runner.open()
            append(runner, seq, ids)
            runner.truncate(seq, length)
            require(runner.length(seq) == length, "truncate keeps the length asked for")
            actual = append(runner, seq, tail)
            runner.free(seq)
            subject.agree(runner, actual, fresh(runner, ids[:length], tail), f"after truncate to {length}")


def check_select(subject: Subject, config: ModelConfig) -> None:
    """Tokens drawn inside the step are those that the definition draws from the runner's own logits."""
    rng, ids = subject.rng(), subject.ids(config, 30)
    with subject.runner(config) as runner:
        for round_ in range(80):
            select = random_select(rng, config.vocab_size)
            rows, start = int(rng.integers(1, 6)), int(rng.integers(0, 20))
            a, b = runner.open(), runner.open()
            for seq in (a, b):
                if start:
                    append(runner, seq, ids[:start])
            logits = runner.forward([Step(a, ids[start:], rows)])[0].logits
            result = runner.forward([Step(b, ids[start:], rows, "select", select)])[0]
            assert logits is not None
            tokens, logprobs = select_rows(logits, select, len(ids) - rows + 1)
            require(result.logits is None, "select leaves the logits inside")
            require(
                result.token_ids == tokens,
                f"round {round_}: drew {result.token_ids}, expected {tokens} by {select}",
            )
            check_logprobs(result.logprobs, logprobs)
            runner.free(a)
            runner.free(b)


def check_logprobs(actual: Sequence[TokenLogprob] | None, expected: Sequence[TokenLogprob] | None) -> None:
    """Same ids, numbers to 1e-4."""
    require((actual is None) == (expected is None), f"logprobs: {actual}, expected {expected}")
    for a, e in zip(actual or (), expected or (), strict=True):
        require([i for i, _ in a.top] == [i for i, _ in e.top], f"alternatives {a.top}, expected {e.top}")
        numbers = [(a.logprob, e.logprob), *((x[1], y[1]) for x, y in zip(a.top, e.top, strict=True))]
        require(a.token_id == e.token_id, f"logprob of id {a.token_id}, expected {e.token_id}")
        require(all(abs(x - y) < 1e-4 for x, y in numbers), f"log-probabilities {a}, expected {e}")


def random_select(rng: np.random.Generator, vocab_size: int) -> Select:
    """Return settings of all kinds, neutral ones among them."""
    seen = np.unique(rng.integers(0, vocab_size, rng.integers(0, 20))).astype(np.int32)
    mask = rng.integers(0, 2**32, (vocab_size + 31) // 32, dtype=np.uint32) if rng.random() < 0.3 else None
    if mask is not None:
        mask[0] |= 1  # something is always allowed
    return Select(
        temperature=float(rng.choice([0.0, 1e-31, 1e-29, 0.5, 1.0, 2.0, 1e6])),
        top_k=int(rng.choice([0, 1, 5, 40, 2**31 - 1])),
        top_p=float(rng.choice([1.0, 0.9, 0.5, 1e-9])),
        min_p=float(rng.choice([0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=float(rng.choice([1.0, 1.2, 0.8])),
        presence_penalty=float(rng.choice([0.0, 0.5, -0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.3])),
        vocab_limit=int(rng.choice([0, vocab_size, vocab_size - 7])),
        seen=seen,
        counts=rng.integers(0, 4, len(seen)).astype(np.int32),
        mask=mask,
        logprobs=int(rng.choice([-1, 0, 5])),
        seed=int(rng.integers(0, 2**63)),
    )


def check_invariance(subject: Subject, config: ModelConfig) -> None:
    """Random batches, chunks and forks give every row the very bits that its sequence gives alone, in one chunk."""
    rng = subject.rng()
    lengths = [*rng.integers(1, 120, 5), min(700, config.max_position_embeddings)]
    prompts = [subject.ids(config, int(n), stream=i) for i, n in enumerate(lengths)]
    with subject.runner(config) as runner:
        alone = [append(runner, runner.open(), ids) for ids in prompts]
        for round_ in range(4):
            for i, actual in enumerate(shuffled(runner, prompts, rng)):
                subject.agree(runner, actual, alone[i][-len(actual) :], f"round {round_}, sequence {i}")


def shuffled(runner: Runner, prompts: Sequence[Sequence[int]], rng: np.random.Generator) -> list[Array]:
    """Work on all prompts at once in random pieces, forking at random; return each one's last rows."""
    seqs = [runner.open() for _ in prompts]
    parts: list[list[Array]] = [[] for _ in prompts]
    while any(runner.length(s) < len(ids) for s, ids in zip(seqs, prompts, strict=True)):
        steps = random_steps(runner, seqs, prompts, rng)
        if not steps:
            continue
        for i, result in zip(steps, runner.forward(list(steps.values())), strict=True):
            parts[i].append(answer(result, "logits"))
            if rng.random() < 0.2:
                seqs[i] = replaced_by_fork(runner, seqs[i])
    for seq in seqs:
        runner.free(seq)
    return [np.concatenate(rows) for rows in parts]


def random_steps(
    runner: Runner, seqs: Sequence[int], prompts: Sequence[Sequence[int]], rng: np.random.Generator
) -> dict[int, Step]:
    """Return steps for some of the sequences, in random order, within the runner's limit."""
    steps: dict[int, Step] = {}
    room = runner.info.max_step_tokens
    for i in rng.permutation(len(seqs)):
        done = runner.length(seqs[i])
        count = min(int(rng.choice([1, 2, 5, 16, 64, 300])), len(prompts[i]) - done, room)
        if count > 0 and rng.random() < 0.7:
            steps[int(i)] = Step(seqs[i], prompts[i][done : done + count], count)
            room -= count
    return steps


def replaced_by_fork(runner: Runner, seq: int) -> int:
    """Return a fork of the whole sequence, which is freed."""
    fork = runner.fork(seq, runner.length(seq))
    runner.free(seq)
    return fork


def check_select_invariance(subject: Subject, config: ModelConfig) -> None:
    """A draw depends on the sequence, the settings and the position, not on what shares the step."""
    rng = subject.rng()
    prompts = [subject.ids(config, n, stream=n) for n in (3, 20, 41)]
    selects = [random_select(rng, config.vocab_size) for _ in prompts]
    with subject.runner(config) as runner:

        def steps(pick: Sequence[int]) -> list[Step]:
            return [Step(runner.open(), prompts[i], 1, "select", selects[i]) for i in pick]

        alone = [runner.forward(steps([i]))[0] for i in range(3)]
        together = runner.forward(steps([2, 0, 1]))
        require([together[1], together[2], together[0]] == alone, "draws differ between batch and alone")
