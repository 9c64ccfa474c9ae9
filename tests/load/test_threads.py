"""Many threads on one model: each result is that of the same request alone."""

from __future__ import annotations

import threading

import pytest

import ernie_accel as ea
from tests.load.asking import ROOM, Alone, Ask, asked, drawn, guessing, kv_limit, load

KINDS = (
    "mock",
    *(
        pytest.param(
            kind,
            marks=pytest.mark.skipif(
                not ea.backends()["native"].ok, reason="the native backend cannot run here"
            ),
        )
        for kind in ("native", "native-moe", "native-mtp")
    ),
)
THREADS = 32
EACH = 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guesses", [False, True])
def test_each_of_32_threads_gets_what_it_would_get_alone(kind: str, guesses: bool) -> None:
    asks, expected = asked(kind, seed=32, count=THREADS * EACH)
    wrong: list[int] = []
    failures: list[BaseException] = []

    def run(model: ea.Model, number: int, together: threading.Barrier) -> None:
        try:
            together.wait(60)
            for index in range(number, len(asks), THREADS):
                if _drawn(model, index, asks[index]) != _expected(index, expected[index]):
                    wrong.append(index)
        except BaseException as error:
            failures.append(error)

    options = ea.EngineOptions(speculation=guessing(kind) if guesses else "off")
    with load(kind, engine=options, memory_limit=kv_limit(kind, 12 * ROOM), max_batch=16) as model:
        together = threading.Barrier(THREADS)
        threads = [threading.Thread(target=run, args=(model, i, together)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        assert wrong == []
        metrics = model.metrics()
        assert metrics.counters["cached_tokens"] > 0
        assert metrics.histograms["batch_size"].mean > 2
        assert (metrics.counters["drafted_tokens"] > 0) == guesses
        model.clear_cache()
        assert model.metrics().gauges["kv_used_tokens"] == 0


def _drawn(model: ea.Model, index: int, ask: Ask) -> object:
    """Every fifth request reads its prompt instead of continuing it."""
    if index % 5 == 4:
        return model.logits(ask.prompt).tobytes(), model.score(ask.prompt), model.embed(ask.prompt).tobytes()
    return drawn(model.generate(ask.prompt, ask.params))


def _expected(index: int, alone: Alone) -> object:
    return (alone.logits, alone.score, alone.embedding) if index % 5 == 4 else alone.drawn
