"""The engine over a process group of ours that runs FastDeploy's ``LLM``."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import selectors
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ernie_accel.backends.engine import EngineInfo, Request
from ernie_accel.backends.fastdeploy.fields import sampling
from ernie_accel.backends.fastdeploy.group import LONGEST_LINE, Group
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.backends.feed import Piece
from ernie_accel.backends.tasks import TaskEngine
from ernie_accel.errors import (
    ArgumentError,
    BackendError,
    BackendProcessError,
    DeadlineError,
    UnsupportedError,
)
from ernie_accel.types import Progress, Usage

__all__ = ["GroupEngine", "start"]

CONNECTING_SECONDS = 10.0
DYING_SECONDS = 5.0
LOOK_SECONDS = 1.0
STAGES = ("importing FastDeploy", "starting FastDeploy", "waiting for a first token")
Event = dict[str, Any]

_SERVE = Path(__file__).with_name("serve.py")


def start(
    own: FastDeployOptions,
    arguments: Mapping[str, Any],
    probe: list[int],
    visible: str | None,
    progress: Progress | None,
) -> tuple[Group, Event]:
    """Start a group and wait until it has made a token; return it with what it says about itself.

    Raises:
        BackendProcessError: It failed, ended, or was not ready in time; nothing of it is left then.
    """
    environment = {"INFERENCE_MSG_QUEUE_ID": str(random.SystemRandom().randrange(1 << 16, 1 << 30))}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    logs = None if own.log_directory is None else Path(own.log_directory)
    group = Group(
        [own.python or sys.executable, str(_SERVE)],
        environment={**environment, **own.environment},
        logs=logs,
        log_variable="FD_LOG_DIR",
    )
    try:
        group.send({"arguments": dict(arguments), "probe": probe})
        return group, _ready(group, own.start_timeout, progress)
    except BaseException:
        group.close(keep_logs=True, at_once=True)
        raise


def _ready(group: Group, timeout: float, progress: Progress | None) -> Event:
    """Read events until the group is ready."""
    stage = "starting its process"
    for event in _events(group, timeout):
        if event is None:
            raise group.failure(f"FastDeploy was not ready within {timeout:g} s: it was still {stage}")
        kind = event["event"]
        if kind == "ready":
            return event
        if kind == "stage":
            stage = event["name"]
            if progress is not None and stage in STAGES:
                progress(stage, STAGES.index(stage), len(STAGES))
        elif kind in ("failed", "dead"):
            group.wait(DYING_SECONDS)
            raise group.failure(f"FastDeploy did not start: {event['message']}")
    group.wait(DYING_SECONDS)
    raise group.failure(f"FastDeploy ended while it was {stage}")


def _events(group: Group, left: float) -> Iterator[Event | None]:
    """Yield what the worker says until it is gone; None when the time is over.

    Time that passes between two looks counts as one look: a machine that was suspended has lost nobody's time.
    """
    data = b""
    group.socket.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(group.socket, selectors.EVENT_READ)
        while left > 0:
            began = time.monotonic()
            if not selector.select(min(left, LOOK_SECONDS)):
                left -= min(time.monotonic() - began, LOOK_SECONDS)
                continue
            try:
                read = group.socket.recv(65536)
            except ConnectionError:  # it ended before it had read what it was sent
                return
            if not read:
                return
            *lines, data = (data + read).split(b"\n")
            for line in lines:
                yield json.loads(line)
            left -= min(time.monotonic() - began, LOOK_SECONDS)
    yield None


class _Link:
    """The connection with the worker, in the event loop: sorts what it says by request. Knows no engine."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._answers: dict[int, asyncio.Queue[Event | None]] = {}
        self._numbers = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last = ""
        self.dead = False

    async def connect(self) -> None:
        """Take the socket over."""
        reader, self._writer = await asyncio.open_connection(sock=self._group.socket, limit=LONGEST_LINE)
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                event = json.loads(line)
                if event["event"] == "dead":
                    self._last = event["message"]
                answer = self._answers.get(event.get("id", 0))
                if answer is not None:
                    answer.put_nowait(event)
        except (OSError, ValueError) as error:
            self._last = f"the connection to it broke: {error}"
        finally:
            self.dead = True
            for answer in self._answers.values():
                answer.put_nowait(None)
            if self._writer is not None:
                self._writer.close()

    def open(self) -> tuple[int, asyncio.Queue[Event | None]]:
        """Begin a request: its number, and where its events will be. None is the end of the group."""
        number, answer = next(self._numbers), asyncio.Queue[Event | None]()
        self._answers[number] = answer
        if self.dead:
            answer.put_nowait(None)
        return number, answer

    def forget(self, number: int) -> None:
        """End a request; what still comes for it is dropped."""
        del self._answers[number]

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
        self.send({"op": "close"})
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.drain(), 1.0)
        was_dead = self.dead
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        self.dead = was_dead
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)


class GroupEngine(TaskEngine):
    """Whole requests on a group that ``start`` gave, which it owns from here on.

    FastDeploy cannot be told to stop offline: a request that is cancelled ends here at once, and goes on unheard there.
    """

    def __init__(
        self,
        group: Group,
        info: EngineInfo,
        *,
        concurrency: int,
        queue_size: int,
        guided: bool,
        patience: float,
    ) -> None:
        super().__init__(info, concurrency=concurrency, queue_size=queue_size)
        self._group = group
        self._guided = guided
        self._patience = patience
        self._link = _Link(group)
        self.ask(self._link.connect(), CONNECTING_SECONDS)

    def refuse(self, request: Request) -> None:
        """Refuse what FastDeploy cannot be asked."""
        if request.text is not None or request.turn is not None:
            raise UnsupportedError(
                "a process group of FastDeploy takes token ids: the directory needs a tokenizer"
            )
        sampling(request.params, 0, "fastdeploy", guided=self._guided)

    async def pieces(self, request: Request, seed: int) -> AsyncGenerator[Piece, None]:
        """Ask for one completion and give it as it comes."""
        number, answer = self._link.open()
        ended = False
        try:
            fields = sampling(request.params, seed, "fastdeploy", guided=self._guided)
            most = min(request.params.max_tokens, self._info.max_context - len(request.token_ids))
            if most < 1:
                yield Piece(finish_reason="length")
                return
            fields["max_tokens"] = most
            self._link.send(
                {"op": "generate", "id": number, "ids": list(request.token_ids), "fields": fields}
            )
            while not ended:
                event = await self._heard(answer)
                if event is None:
                    ended = True
                    raise await self._link.failure()
                ended = event["event"] in ("end", "error")
                yield _piece(event, request, most)
        finally:
            self._link.forget(number)
            if not ended:
                self._link.send({"op": "cancel", "id": number})

    async def _heard(self, answer: asyncio.Queue[Event | None]) -> Event | None:
        """Wait for the next event, but not for ever: a worker may live and do nothing."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._patience, answer.put_nowait, {"event": "silence"})
        try:
            return await answer.get()
        finally:
            timer.cancel()

    async def shut(self) -> None:
        """Tell the worker to end."""
        await self._link.close()

    def close(self) -> None:
        """End what is under way, then every process of the group."""
        super().close()
        self._group.close(keep_logs=self._link.dead)


def _piece(event: Event, request: Request, most: int) -> Piece:
    """Translate an event; why an answer ended follows from its length, since offline results do not say."""
    if event["event"] == "error":
        message, code = event["message"], event["code"]
        if code == 400:
            raise ArgumentError(f"FastDeploy refused the request: {message}")
        raise BackendError(f"FastDeploy failed with {code}: {message}")
    if event["event"] == "silence":
        raise DeadlineError(
            "FastDeploy gave nothing new for too long; allow more with FastDeployOptions(read_timeout=...), or look "
            "into its logs"
        )
    if event["event"] == "piece":
        return Piece(text=event["text"], token_ids=tuple(event["ids"]))
    usage = Usage(
        prompt_tokens=len(request.token_ids),
        completion_tokens=event["count"],
        cached_tokens=event["cached"],
    )
    return Piece(finish_reason="length" if event["count"] >= most else "stop", usage=usage)
