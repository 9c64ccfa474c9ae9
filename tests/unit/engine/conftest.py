from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ernie_accel.backends.base import RunnerInfo, Step, StepResult
from ernie_accel.backends.mock import MockOptions, MockRunner
from ernie_accel.engine.local import LocalEngine
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.request import Request
from ernie_accel.engine.sampling import select_rows
from ernie_accel.types import SamplingParams

VOCAB = 64
END = 2


class ScriptedRunner(MockRunner):
    """A mock that records its steps, calls a hook around each, and can draw inside the step."""

    def __init__(self, info: RunnerInfo, options: MockOptions, kv_tokens: int) -> None:
        super().__init__(info, options, END, kv_tokens)
        self.steps: list[list[Step]] = []
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None
        self.forks: list[int] = []

    @property
    def open_sequences(self) -> int:
        return len(self._states)

    def fork(self, seq: int, length: int) -> int:
        self.forks.append(length)
        return super().fork(seq, length)

    def forward(self, batch: Sequence[Step]) -> list[StepResult]:
        self.steps.append(list(batch))
        self.before(len(self.steps))
        first = [self.length(step.seq) + len(step.token_ids) - step.rows + 1 for step in batch]
        results = super().forward(batch)
        self.after(len(self.steps))
        return [_select(*args) for args in zip(batch, results, first, strict=True)]


def _select(step: Step, result: StepResult, first: int) -> StepResult:
    if step.output != "select" or step.select is None or result.logits is None:
        return result
    ids, logprobs = select_rows(result.logits, step.select, first)
    return StepResult(token_ids=ids, logprobs=logprobs)


class Letters:
    """Token 3 is "a", 4 is "b" and so on; two tokens of "half" give one character."""

    def __init__(self) -> None:
        self._half = 0

    def push(self, token_id: int) -> str:
        if token_id == VOCAB - 1:
            self._half += 1
            return "é" if self._half % 2 == 0 else ""
        return chr(ord("a") + token_id - 3)

    def flush(self) -> str:
        return "\ufffd" if self._half % 2 else ""


def ids_of(text: str) -> list[int]:
    return [ord(letter) - ord("a") + 3 for letter in text]


class Bench:
    """Makes engines over scripted Runners."""

    def __init__(self) -> None:
        self.runner: ScriptedRunner
        self._engine: LocalEngine

    def engine(
        self,
        *,
        reply: str | Sequence[int] = (),
        replies: dict[tuple[int, ...], Sequence[int]] | None = None,
        certainty: float = 100.0,
        max_context: int = 256,
        max_sequences: int = 8,
        max_step_tokens: int = 64,
        kv_tokens: int = 10_000,
        select: bool = False,
        vocab_limit: int = 0,
        page_size: int = 1,
        **settings: Any,
    ) -> LocalEngine:
        info = RunnerInfo(
            backend="scripted",
            vocab_size=VOCAB,
            hidden_size=4,
            max_context=max_context,
            precision="fp32",
            kv_precision="fp32",
            page_size=page_size,
            max_step_tokens=max_step_tokens,
            max_sequences=max_sequences,
            capabilities=frozenset({"park", "select"} if select else {"park"}),
        )
        ids = ids_of(reply) if isinstance(reply, str) else reply
        options = MockOptions(reply=ids, replies=replies or {}, certainty=certainty)
        self.runner = ScriptedRunner(info, options, kv_tokens)
        self._engine = LocalEngine(
            self.runner,
            decoder=Letters,
            vocab_limit=vocab_limit,
            options=EngineOptions(**{"prefix_cache": False, **settings}),
        )
        return self._engine

    def open_sequences(self) -> int:
        """Return what is open once everything that was sent to the engine is carried out."""
        self._engine.metrics()
        return self.runner.open_sequences


@pytest.fixture
def bench() -> Bench:
    return Bench()


class Gate:
    """Holds a Runner before one of its steps, so that a test can act while others compute."""

    def __init__(self, runner: ScriptedRunner, step: int) -> None:
        self._reached, self._open = threading.Event(), threading.Event()
        self._step = step
        runner.before = self._before

    def _before(self, number: int) -> None:
        if number == self._step:
            self._reached.set()
            assert self._open.wait(20)

    def __enter__(self) -> Gate:
        assert self._reached.wait(20)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.set()


@pytest.fixture
def request_of() -> Callable[..., Request]:
    def make(
        prompt: Sequence[int] = (5, 6, 7),
        *,
        end: bool = True,
        priority: int = 0,
        deadline: float = math.inf,
        **params: object,
    ) -> Request:
        settled = {"temperature": 0.0, "seed": 0, **params}
        return Request(
            token_ids=tuple(prompt),
            params=SamplingParams(**settled),  # type: ignore[arg-type]
            priority=priority,
            deadline=deadline,
            stop_ids=frozenset({END} if end else ()) | frozenset(settled.get("stop_token_ids", ())),  # type: ignore[call-overload]
        )

    return make
