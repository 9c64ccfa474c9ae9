"""The connection with the worker of a process group, in an event loop: sorts what it says by request."""

from __future__ import annotations

import asyncio
import itertools
import json
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ernie_accel.backends.fastdeploy.group import LONGEST_LINE, Group
from ernie_accel.errors import BackendProcessError

__all__ = ["DYING_SECONDS", "Event", "Link"]

DYING_SECONDS = 5.0
Event = dict[str, Any]


class Link:
    """Requests by number, each with a queue for what comes back. Knows no engine.

    Args:
        group: Whose socket it takes over.
        patience: Seconds without a word about a request that was cancelled after which it counts as ended.
        left: Called when one of those has ended; referred to weakly.

    Attributes:
        dead: Nothing comes any more.
    """

    def __init__(self, group: Group, patience: float, left: weakref.WeakMethod[Callable[[], object]]) -> None:
        self._group = group
        self._patience = patience
        self._on_left = left
        self._answers: dict[int, asyncio.Queue[Event | None]] = {}
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        self._numbers = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last = ""
        self.dead = False

    @property
    def leaving(self) -> int:
        """Requests that were cancelled, and that the worker has not ended yet."""
        return len(self._leaving)

    async def connect(self) -> None:
        """Take the socket over."""
        reader, self._writer = await asyncio.open_connection(sock=self._group.socket, limit=LONGEST_LINE)
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))

    def open(self) -> tuple[int, asyncio.Queue[Event | None]]:
        """Begin a request: its number, and where its events will be. None is the end of the group."""
        number, answer = next(self._numbers), asyncio.Queue[Event | None]()
        self._answers[number] = answer
        if self.dead:
            answer.put_nowait(None)
        return number, answer

    def forget(self, number: int, *, goes_on: bool) -> None:
        """End a request; what still comes for it is dropped. One that goes on there is cancelled, and watched."""
        del self._answers[number]
        if goes_on and not self.dead:
            self.send({"op": "cancel", "id": number})
            self._watch(number)

    def send(self, message: Event) -> None:
        """Write a line, if the worker is there still."""
        if self._writer is not None and not self.dead:
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def failure(self) -> BackendProcessError:
        """Return why the group is no more."""
        await asyncio.to_thread(self._group.wait, DYING_SECONDS)
        what = self._last or "its process is gone"
        return self._group.failure(f"the process group of FastDeploy has failed: {what}")

    async def close(self) -> None:
        """Say good-bye and stop reading."""
        if self._writer is None or self._reading is None:
            return
        was_dead = self.dead  # the worker may have ended before the next line but one
        self.send({"op": "close"})
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.drain(), 1.0)
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        self.dead = was_dead
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._sort(json.loads(line))
        except (OSError, ValueError) as error:
            self._last = f"the connection to it broke: {error}"
        finally:
            self.dead = True
            for answer in self._answers.values():
                answer.put_nowait(None)
            for number in list(self._leaving):
                self._has_left(number)
            if self._writer is not None:
                self._writer.close()

    def _sort(self, event: Event) -> None:
        if event["event"] == "dead":
            self._last = event["message"]
        number = event.get("id", 0)
        answer = self._answers.get(number)
        if answer is not None:
            answer.put_nowait(event)
        elif number in self._leaving:
            if event["event"] in ("end", "error"):
                self._has_left(number)
            else:
                self._watch(number)

    def _watch(self, number: int) -> None:
        """Wait for the end of a request that nobody waits for, but not for ever."""
        if number in self._leaving:
            self._leaving[number].cancel()
        loop = asyncio.get_running_loop()
        self._leaving[number] = loop.call_later(self._patience, self._has_left, number)

    def _has_left(self, number: int) -> None:
        self._leaving.pop(number).cancel()
        left = self._on_left()
        if left is not None:
            left()
