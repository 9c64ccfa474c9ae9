"""Requests of all kinds at random, ended in all ways, in little memory: nothing is lost, mixed up or left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

import ernie_accel as ea
from tests.load.asking import ROOM, Alone, Ask, asked, drawn, guessing, is_beginning, kv_limit, load
from tests.load.test_threads import KINDS

THREADS = 6
TASKS = 6
PATIENCE = 120
"""Seconds after which something hangs."""


class Stress:
    """Does random things with one model; notes what was wrong.

    Attributes:
        model: What is stressed.
        done: How often everything was done.
        wrong: What did not come out as it does alone.
    """

    def __init__(self, model: ea.Model, asks: Sequence[Ask], expected: Sequence[Alone]) -> None:
        self.model = model
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._asks = asks
        self._expected = expected

    def check(self, good: bool, what: str, index: int) -> None:
        """Count one more of ``what``."""
        self.done[what] += 1
        if not good:
            self.wrong.append(f"{what} of request {index}: {self._asks[index]}")

    def pick(self, draw: random.Random) -> tuple[int, Ask, Alone]:
        """Choose a request."""
        index = draw.randrange(len(self._asks))
        return index, self._asks[index], self._expected[index]

    def generate(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        done = self.model.generate(ask.prompt, ask.params, priority=draw.randint(-1, 1))
        self.check(drawn(done) == expected.drawn, "generate", index)

    def several(self, draw: random.Random) -> None:
        picked = [self.pick(draw) for _ in range(draw.randint(2, 6))]
        handles = [self.model.submit(ask.prompt, ask.params) for _, ask, _ in picked]
        for handle, (index, _, expected) in zip(handles, picked, strict=True):
            self.check(drawn(handle.result(PATIENCE)) == expected.drawn, "submit", index)

    def timeout(self, draw: random.Random) -> None:
        """Half of them are over before the first step, however fast the machine is."""
        index, ask, expected = self.pick(draw)
        timeout = draw.choice((1e-9, draw.uniform(0.0005, 0.03)))
        try:
            done = self.model.generate(ask.prompt, ask.params, timeout=timeout)
        except ea.DeadlineError:
            self.check(True, "deadline", index)
        else:
            self.check(drawn(done) == expected.drawn, "timeout", index)

    def cancel(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        handle = self.model.submit(ask.prompt, ask.params, priority=draw.randint(-1, 1))
        for _ in range(draw.randint(0, 3)):
            next(handle, None)
        handle.cancel()
        self.check(is_beginning(handle.result(PATIENCE), expected.drawn), "cancel", index)

    def drop(self, draw: random.Random) -> None:
        index, ask, _ = self.pick(draw)
        handle = self.model.submit(ask.prompt, ask.params)
        if draw.random() < 0.5:
            next(handle, None)
        del handle
        self.check(True, "drop", index)

    def refuse(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        try:
            handle = self.model.submit(ask.prompt, ask.params, block=False)
        except ea.QueueFullError:
            self.check(True, "queue full", index)
        else:
            self.check(drawn(handle.result(PATIENCE)) == expected.drawn, "submit", index)

    def stream(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        ids: list[int] = []
        with self.model.stream(ask.prompt, ask.params, n=1) as stream:
            for chunk in stream:
                ids.extend(chunk.token_ids)
                if draw.random() < 0.1:
                    break
        self.check(tuple(ids) == expected.drawn[0][0][: len(ids)], "stream", index)

    def read(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        what = draw.choice(("logits", "score", "embed"))
        if what == "logits":
            good = self.model.logits(ask.prompt).tobytes() == expected.logits
        elif what == "score":
            good = self.model.score([ask.prompt, ask.prompt]) == [expected.score] * 2
        else:
            good = self.model.embed(ask.prompt).tobytes() == expected.embedding
        self.check(good, what, index)

    def clear(self, draw: random.Random) -> None:
        self.model.clear_cache()
        self.check(True, "clear", 0)

    async def agenerate(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        done = await self.model.agenerate(ask.prompt, ask.params)
        self.check(drawn(done) == expected.drawn, "agenerate", index)

    async def cancelled_task(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        task = asyncio.create_task(self.model.agenerate(ask.prompt, ask.params))
        await asyncio.sleep(draw.uniform(0, 0.02))
        task.cancel()
        try:
            done = await task
        except asyncio.CancelledError:
            self.check(True, "cancelled task", index)
        else:
            self.check(drawn(done) == expected.drawn, "agenerate", index)

    async def astream(self, draw: random.Random) -> None:
        index, ask, expected = self.pick(draw)
        ids: list[int] = []
        async with self.model.astream(ask.prompt, ask.params, n=1) as stream:
            async for chunk in stream:
                ids.extend(chunk.token_ids)
                if draw.random() < 0.1:
                    break
        self.check(tuple(ids) == expected.drawn[0][0][: len(ids)], "astream", index)


def _work(stress: Stress, seed: int, count: int) -> None:
    draw = random.Random(seed)
    actions: list[Callable[[random.Random], None]] = [
        *(stress.generate, stress.several, stress.timeout, stress.cancel, stress.drop),
        *(stress.refuse, stress.stream, stress.read),
    ]
    for number in range(count):
        (stress.clear if number % 25 == 24 else draw.choice(actions))(draw)


async def _await(stress: Stress, seed: int, count: int) -> None:
    async def one(draw: random.Random) -> None:
        for _ in range(count):
            await draw.choice((stress.agenerate, stress.cancelled_task, stress.astream))(draw)

    await asyncio.gather(*(one(random.Random(seed + task)) for task in range(TASKS)))


def _run(stress: Stress, seed: int, count: int) -> None:
    """Have threads and an event loop do ``count`` things each."""
    failures: list[BaseException] = []

    def guarded(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    bodies: list[Callable[[], object]] = [
        lambda i=i: _work(stress, seed + i, count)  # type: ignore[misc]
        for i in range(THREADS)
    ]
    bodies.append(lambda: asyncio.run(_await(stress, seed + 100, count)))
    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10 * PATIENCE
    for thread in threads:
        thread.join(end - time.monotonic())
    assert not any(thread.is_alive() for thread in threads), stress.model.metrics()
    assert failures == []


def _stress(kind: str, options: ea.EngineOptions, requests: int, count: int, seed: int) -> None:
    asks, expected = asked(kind, seed, requests)
    before = set(threading.enumerate())
    model = load(kind, engine=options, memory_limit=kv_limit(kind, 2 * ROOM), max_batch=12)
    stress = Stress(model, asks, expected)
    _run(stress, seed, count)
    gc.collect()
    assert stress.wrong == []
    _look_behind(model)
    counters = model.metrics().counters
    assert counters["preemptions"] > 0
    assert counters["cached_tokens"] > 0
    assert stress.done["deadline"] > 0
    assert counters["requests_failed"] > 0  # those whose time was over before a full queue are not among them
    assert counters["requests_cancelled"] > 0
    assert counters["drafted_tokens"] > 0
    mine = set(threading.enumerate()) - before
    model.close()
    for thread in mine:
        thread.join(20)
    assert not any(thread.is_alive() for thread in mine)


def _look_behind(model: ea.Model) -> None:
    """After everything has ended only the prefix cache holds memory."""
    gauges = model.metrics().gauges
    assert (gauges["running"], gauges["waiting"]) == (0, 0)
    model.clear_cache()
    gauges = model.metrics().gauges
    assert (gauges["kv_used_tokens"], gauges["kept_sequences"], gauges["kv_kept_tokens"]) == (0, 0, 0)
    scheduler = model._engine._scheduler  # type: ignore[attr-defined]
    assert not scheduler.queued
    assert scheduler._timed == 0
    prefixes = scheduler.prefixes
    assert (prefixes._index, prefixes._running, prefixes._kept_ends) == ({}, {}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_hundred_random_requests(kind: str) -> None:
    options = ea.EngineOptions(queue_size=8, speculation=guessing(kind))
    _stress(kind, options, requests=40, count=25, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("step_tokens", [None, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_random_requests(kind: str, step_tokens: int | None) -> None:
    options = ea.EngineOptions(
        queue_size=16,
        speculation=guessing(kind),
        step_tokens=step_tokens,
        latency_target=0.002 if step_tokens is None else None,
    )
    _stress(kind, options, requests=300, count=400, seed=2)
