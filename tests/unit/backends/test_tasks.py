"""What the base of engines promises whatever the one over it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from ernie_accel.backends import tasks
from ernie_accel.backends.engine import EngineInfo, Request
from ernie_accel.backends.feed import Piece
from ernie_accel.backends.tasks import TaskEngine


class Stuck(TaskEngine):
    """An engine that never finishes anything."""

    def __init__(self) -> None:
        info = EngineInfo(
            backend="stuck",
            vocab_size=8,
            max_context=8,
            precision="fp32",
            kv_precision="fp32",
            max_sequences=1,
        )
        super().__init__(info, concurrency=1)

    async def pieces(self, request: Request, seed: int) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(3600)
        yield Piece()

    async def shut(self) -> None:
        await asyncio.sleep(3600)


def test_what_takes_too_long_is_nothing_and_closing_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Python 3.10 too, where a future's TimeoutError is a class of its own."""
    monkeypatch.setattr(tasks, "CLOSING_SECONDS", 0.2)
    engine = Stuck()
    assert engine.ask(asyncio.sleep(3600), 0.05) is None
    engine.close()
    engine._thread.join(20)
    assert not engine._thread.is_alive()


class Careless(Stuck):
    """An engine that leaves a task behind, which drops a generator that has something to do at its end."""

    ended = 0

    async def shut(self) -> None:
        self.left = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        numbers = self._numbers()
        await numbers.__anext__()
        try:
            await asyncio.sleep(3600)
        finally:
            del numbers

    async def _numbers(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0.01)
            self.ended += 1


def test_what_is_dropped_at_the_end_ends_before_the_loop_does() -> None:
    engine = Careless()
    engine.close()
    assert engine.ended == 1
