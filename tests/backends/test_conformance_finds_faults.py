"""The conformance suite must fail backends that are wrong: each fault here is one that a port could have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from ernie_accel.backends import reference
from ernie_accel.backends.array_cache import KvCache
from ernie_accel.backends.base import Capacity, LoadOptions, Select, Step, StepResult
from ernie_accel.backends.checks import check_batch, check_late, check_select
from ernie_accel.backends.reference import Moe, ReferenceBackend, ReferenceRunner
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.engine.sampling import select_rows
from ernie_accel.errors import ArgumentError
from ernie_accel.testing.conformance import Subject, cases, run_conformance


class Runner(ReferenceRunner):
    """A sound runner to break: the reference, with select."""

    claims = frozenset({"hidden", "select"})

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        for step in batch:
            if step.output == "select" and step.select:
                check_select(step.select, self.info.vocab_size)
        plain = [replace(s, output="logits") if s.output == "select" and s.select else s for s in batch]
        results = super().forward(plain)
        return [self.drawn(s, r) for s, r in zip(batch, results, strict=True)]

    def drawn(self, step: Step, result: StepResult) -> StepResult:
        if step.output != "select" or step.select is None or result.logits is None:
            return result
        first = self.length(step.seq) - step.rows + 1
        return StepResult(
            token_ids=(drawn := select_rows(result.logits, step.select, first))[0], logprobs=drawn[1]
        )


class Begun:
    """A step that is computed when its result is asked for, which nobody can tell from one that was begun before."""

    def __init__(self, runner: StartingRunner, batch: Sequence[Step]) -> None:
        self.runner = runner
        self.batch = batch
        self.over = False

    def result(self, selects: Mapping[int, Select]) -> list[StepResult]:
        Runner._check_open(self.runner)
        if self.over:
            raise ArgumentError("the step is over")
        self.close()
        check_late(self.batch, selects, self.runner.info.vocab_size)
        return self.runner.forward(
            [replace(step, select=selects.get(i, step.select)) for i, step in enumerate(self.batch)]
        )

    def close(self) -> None:
        if not self.over:
            self.over = True
            self.runner.under_way = None

    def __enter__(self) -> Begun:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class StartingRunner(Runner):
    """Sound, with overlap."""

    claims = frozenset({"hidden", "select", "overlap"})
    under_way: Begun | None = None

    def start(self, batch: Sequence[Step]) -> Begun:
        self._check_open()
        new = check_batch(batch, self._info, self._growable_length, late=True)
        self._check_tokens(sum(map(len, new)))
        self.under_way = Begun(self, batch)
        return self.under_way

    def _check_open(self) -> None:
        super()._check_open()
        if self.under_way is not None:
            raise ArgumentError("a step is under way")

    def _state(self, seq: int) -> KvCache:
        self._check_open()
        return super()._state(seq)

    def capacity(self) -> Capacity:
        if self.under_way is not None:
            raise ArgumentError("a step is under way")
        return super().capacity()

    def close(self) -> None:
        if self.under_way is not None:
            self.under_way.close()
        super().close()


class StartsTwo(StartingRunner):
    def start(self, batch: Sequence[Step]) -> Begun:
        self.under_way = None
        return super().start(batch)


class KeepsWhatIsGivenUp(StartingRunner):
    def start(self, batch: Sequence[Step]) -> Begun:
        begun = super().start(batch)
        self.under_way = None
        self.forward([replace(step, rows=0, output="logits") for step in batch])
        self.under_way = begun
        return begun


class Greedy(Begun):
    def result(self, selects: Mapping[int, Select]) -> list[StepResult]:
        return super().result({index: Select() for index in selects})


class ForgetsLateSelects(StartingRunner):
    def start(self, batch: Sequence[Step]) -> Begun:
        super().start(batch)
        self.under_way = Greedy(self, batch)
        return self.under_way


class SharedFork(Runner):
    def fork(self, seq: int, length: int) -> int:
        new = super().fork(seq, length)
        self._states[new] = self._states[seq]
        return new


class ForkForgetsLength(Runner):
    def fork(self, seq: int, length: int) -> int:
        return super().fork(seq, self.length(seq))


class TruncateIgnored(Runner):
    def truncate(self, seq: int, length: int) -> None:
        self._state(seq)


class FreeLeaks(Runner):
    def free(self, seq: int) -> None:
        self._kv_tokens -= self.length(seq)
        super().free(seq)


class AppendsBeforeRefusing(Runner):
    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        return [super(AppendsBeforeRefusing, self).forward([step])[0] for step in batch]


class RowsFromTheFront(Runner):
    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        whole = [replace(step, rows=len(step.token_ids) if step.rows > 0 else step.rows) for step in batch]
        results = super().forward(whole)
        return [
            r if r.logits is None else StepResult(logits=r.logits[: s.rows])
            for s, r in zip(batch, results, strict=True)
        ]


class ResultsOutOfOrder(Runner):
    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        order = sorted(range(len(batch)), key=lambda i: batch[i].seq)
        return super().forward([batch[i] for i in order])


class DrawsWithWrongPosition(Runner):
    def drawn(self, step: Step, result: StepResult) -> StepResult:
        if step.output != "select" or step.select is None or result.logits is None:
            return result
        ids, logprobs = select_rows(result.logits, step.select, self.length(step.seq) - step.rows)
        return StepResult(token_ids=ids, logprobs=logprobs)


class DrawsWithoutPenalties(Runner):
    def drawn(self, step: Step, result: StepResult) -> StepResult:
        select = step.select and replace(step.select, seen=None, counts=None)
        return super().drawn(replace(step, select=select), result)


class ClaimsInvariance(Runner):
    claims = frozenset({"hidden", "select", "invariant"})

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        noise = np.float32(1 + 1e-6 * len(batch))
        results = super().forward(batch)
        return [r if r.logits is None else replace(r, logits=r.logits * noise) for r in results]


class UsableAfterClose(Runner):
    def close(self) -> None:
        pass


class NoSequenceLimit(Runner):
    def _add(self, state: KvCache) -> int:
        self._last_id += 1
        self._states[self._last_id] = state
        return self._last_id


@dataclass
class Broken(ReferenceBackend):
    kind: type[Runner]
    name: str = "reference"

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> ReferenceRunner:
        sound = super().open(checkpoint, options)
        assert sound._weights is not None
        info = replace(sound._info, capabilities=self.kind.claims)
        return self.kind(sound._config, sound._weights, info, sound._kv_tokens)


def test_the_sound_runner_passes() -> None:
    report = run_conformance(Subject(backend=Broken(StartingRunner)))
    assert report.failed == ()
    assert len(report.passed) + len(report.skipped) == len(cases())
    assert "0 failed" in str(report)


@pytest.mark.parametrize(
    ("kind", "found_by"),
    [
        (SharedFork, "fork"),
        (ForkForgetsLength, "fork"),
        (TruncateIgnored, "truncate"),
        (FreeLeaks, "no_leak"),
        (AppendsBeforeRefusing, "cache_limit"),
        (AppendsBeforeRefusing, "context_limit"),
        (RowsFromTheFront, "rows"),
        (ResultsOutOfOrder, "batch"),
        (DrawsWithWrongPosition, "select"),
        (DrawsWithoutPenalties, "select"),
        (ClaimsInvariance, "invariance"),
        (UsableAfterClose, "close"),
        (NoSequenceLimit, "sequence_limit"),
        (StartsTwo, "under_way"),
        (KeepsWhatIsGivenUp, "given_up"),
        (ForgetsLateSelects, "late_select"),
    ],
)
def test_a_fault_is_found(kind: type[Runner], found_by: str) -> None:
    subject = Subject(backend=Broken(kind))
    chosen = [c for c in cases() if str(c).startswith(f"{found_by}-") and c.model.startswith("moe")]
    assert chosen
    for case in chosen:
        with pytest.raises(AssertionError):
            case.run(subject)


def no_rotation(x: reference.Array, angles: reference.Array) -> reference.Array:
    return x


def half_split_rotation(x: reference.Array, angles: reference.Array) -> reference.Array:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def route_without_bias(self: Moe, x: reference.Array) -> Any:
    return ROUTE(replace(self, bias=np.zeros_like(self.bias)), x)


def one_expert_less(self: Moe, x: reference.Array) -> Any:
    return ROUTE(replace(self, k=self.k - 1), x)


ROUTE = Moe.route
REFERENCE = Subject(backend=ReferenceBackend())


@pytest.mark.parametrize(
    ("target", "name", "fault"),
    [
        (reference, "rotate", no_rotation),
        (reference, "rotate", half_split_rotation),
        (Moe, "route", route_without_bias),
        (Moe, "route", one_expert_less),
    ],
)
def test_wrong_arithmetic_is_found(
    target: Any, name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(c for c in cases() if str(c) == "logits-moe")
    expected = {
        n: REFERENCE.expected(case.config, REFERENCE.ids(case.config, n)) for n in (1, 2, 17, 100, 300)
    }
    monkeypatch.setattr(Subject, "expected", lambda self, config, ids: expected[len(ids)])
    case.run(REFERENCE)
    monkeypatch.setattr(target, name, fault)
    with pytest.raises(AssertionError, match="argmax agreement"):
        case.run(REFERENCE)
