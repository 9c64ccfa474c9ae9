"""Where tasks of event loops stand while an engine's queue is full."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from functools import partial

from ernie_accel.engine.request import Engine, Handle, Request, late
from ernie_accel.engine.stream import rung
from ernie_accel.errors import QueueFullError

__all__ = ["Line"]


@dataclass
class _Tasks:
    """Those of one event loop: the first has the lock and watches the queue."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


class Line:
    """Queues requests without holding up an event loop, and without a thread for each that waits.

    Tasks of one loop enter in the order in which they came.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[asyncio.AbstractEventLoop, _Tasks] = {}

    async def submit(self, request: Request, *, block: bool = True) -> Handle:
        """Queue a request; cancelling the task leaves the line.

        Raises:
            DeadlineError: The request's time was over before there was room; other errors are those of
                ``Engine.submit``.
            QueueFullError: ``block`` is false, and there is no room, or others stand in line for what there is.
        """
        in_line = self._waiting.get(asyncio.get_running_loop())
        if not block:
            if in_line is not None:
                raise QueueFullError(
                    f"the queue of requests is full, and {in_line.count} wait before it; try again later"
                )
            return self._engine.submit(request, block=False)
        if in_line is None:
            try:
                return self._engine.submit(request, block=False)
            except QueueFullError:
                pass
        if request.deadline == math.inf:
            return await self._in_line(request)
        return await self._in_line_until(request, request.deadline - time.monotonic())

    async def _in_line_until(self, request: Request, left: float) -> Handle:
        # wait_for before Python 3.12 returns a result that comes together with a cancel, and the cancel is lost.
        entering = asyncio.ensure_future(self._in_line(request))
        try:
            await asyncio.wait([entering], timeout=left)
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.wait([entering])
        if entering.cancelled():
            raise late()
        return entering.result()

    async def _in_line(self, request: Request) -> Handle:
        loop = asyncio.get_running_loop()
        tasks = self._waiting.setdefault(loop, _Tasks())
        tasks.count += 1
        try:
            async with tasks.lock:
                while True:
                    try:
                        return self._engine.submit(request, block=False)
                    except QueueFullError:
                        await rung(partial(self._engine.notify_room, request))
        finally:
            tasks.count -= 1
            if not tasks.count:
                del self._waiting[loop]
