"""Our engines through the suite that third parties use too; those over FastDeploy are in unit/backends/fastdeploy2."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import pytest

from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.engine import Engine, EngineInfo, Request
from ernie_accel.backends.feed import Piece
from ernie_accel.backends.registry import get
from ernie_accel.backends.tasks import TaskEngine
from ernie_accel.engine.local import LocalEngine
from ernie_accel.errors import UnsupportedError
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.testing.conformance import EngineSubject, run_engine_conformance
from ernie_accel.testing.conformance.engines import ENGINE_CHECKS


def local(name: str) -> Engine:
    with synthetic(tiny_config()) as checkpoint:
        return LocalEngine(get(name).open(checkpoint, LoadOptions()))


class Counter(TaskEngine):
    """Counts up from the last id."""

    faults: frozenset[str] = frozenset()

    def __init__(self) -> None:
        info = EngineInfo(
            backend="counter",
            vocab_size=1000,
            max_context=64,
            precision="fp32",
            kv_precision="fp32",
            max_sequences=4,
        )
        super().__init__(info, concurrency=4)

    def refuse(self, request: Request) -> None:
        if request.params.logprobs and "silent" not in self.faults:
            raise UnsupportedError("logprobs: not here; 'native' has them")

    async def pieces(self, request: Request, seed: int) -> AsyncGenerator[Piece, None]:
        for number in range(request.params.max_tokens):
            token = request.token_ids[-1] + number + 1
            last = number == request.params.max_tokens - 1 and "no reason" not in self.faults
            yield Piece(text=f"{token} ", token_ids=(token,), finish_reason="length" if last else None)


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "opened", [lambda: local("mock"), lambda: local("native"), Counter], ids=["mock", "native", "tasks"]
)
def test_engine(opened: Callable[[], Engine], check: Callable[[EngineSubject], None]) -> None:
    check(EngineSubject(open=opened))


class Forgetful(Counter):
    """Ends answers without saying why."""

    faults = frozenset({"no reason"})


class Silent(Counter):
    """Ignores what it cannot do."""

    faults = frozenset({"silent"})


class Deaf(Counter):
    """Works on after close."""

    def close(self) -> None:
        return


class Shouting(Counter):
    """Claims what it lacks."""

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"logits"})


@pytest.mark.parametrize(
    ("kind", "check"),
    [(Forgetful, "results"), (Silent, "asked_logprobs"), (Deaf, "engine_close"), (Shouting, "readings")],
)
def test_faults_are_found(kind: type[Counter], check: str) -> None:
    engines: list[Counter] = []

    def opened() -> Counter:
        engines.append(kind())
        return engines[-1]

    report = run_engine_conformance(EngineSubject(open=opened))
    for engine in engines:
        Counter.close(engine)
    assert check in dict(report.failed)
    assert f"FAILED {check}" in str(report)
