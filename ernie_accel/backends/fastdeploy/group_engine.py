"""The engine over a process group of ours that runs FastDeploy's ``LLM``."""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import sys
import time
import weakref
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ernie_accel.backends.engine import EngineInfo, Request
from ernie_accel.backends.fastdeploy.fields import sampling
from ernie_accel.backends.fastdeploy.group import Group
from ernie_accel.backends.fastdeploy.link import DYING_SECONDS, Event, Link
from ernie_accel.backends.fastdeploy.logprobs import of_rows
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.backends.feed import Piece
from ernie_accel.backends.tasks import TaskEngine
from ernie_accel.errors import (
    ArgumentError,
    BackendError,
    DeadlineError,
    UnsupportedError,
)
from ernie_accel.metrics import Metrics
from ernie_accel.types import Progress, TokenLogprob, Usage

__all__ = ["GroupEngine", "start"]

CONNECTING_SECONDS = 10.0
LOOK_SECONDS = 1.0
SCRATCH = ("TMPDIR", "PROMETHEUS_MULTIPROC_DIR")
"""FastDeploy makes directories for its metrics and removes none; the host may have one of its own in the second."""
STAGES = ("importing FastDeploy", "starting FastDeploy", "waiting for a first token")

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
        scratch_variables=SCRATCH,
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


class GroupEngine(TaskEngine):
    """Whole requests on a group that ``start`` gave, which it owns from here on.

    A request that is cancelled ends here at once. It keeps its place until FastDeploy has ended it too, which newer
    versions do when they are told to, and older ones when it is complete.
    """

    def __init__(
        self,
        group: Group,
        info: EngineInfo,
        *,
        concurrency: int,
        queue_size: int,
        guided: bool,
        logprobs: bool,
        patience: float,
    ) -> None:
        super().__init__(info, concurrency=concurrency, queue_size=queue_size)
        self._group = group
        self._allowed = {"guided": guided, "logprobs": logprobs}
        self._patience = patience
        self._link = Link(group, patience, weakref.WeakMethod(self.admit))
        self.ask(self._link.connect(), CONNECTING_SECONDS)

    def refuse(self, request: Request) -> None:
        """Refuse what FastDeploy cannot be asked."""
        if request.text is not None or request.turn is not None:
            raise UnsupportedError(
                "a process group of FastDeploy takes token ids: the directory needs a tokenizer"
            )
        sampling(request.params, 0, "fastdeploy", **self._allowed)

    async def pieces(self, request: Request, seed: int) -> AsyncGenerator[Piece, None]:
        """Ask for one completion and give it as it comes."""
        number, answer = self._link.open()
        ended = True
        try:
            fields = sampling(request.params, seed, "fastdeploy", **self._allowed)
            most = min(request.params.max_tokens, self._info.max_context - len(request.token_ids))
            if most < 1:
                yield Piece(finish_reason="length")
                return
            fields["max_tokens"] = most
            self._link.send(
                {"op": "generate", "id": number, "ids": list(request.token_ids), "fields": fields}
            )
            ended = False
            while not ended:
                event = await self._heard(answer)
                if event is None:
                    ended = True
                    raise await self._link.failure()
                ended = event["event"] in ("end", "error")
                yield _piece(event, request, most)
        finally:
            self._link.forget(number, goes_on=not ended)

    def held(self) -> int:
        """Count the requests that were cancelled here and go on there."""
        return self._link.leaving

    def metrics(self) -> Metrics:
        """Return what was counted; ``abandoned`` were cancelled here, and FastDeploy has not ended them yet."""
        own = super().metrics()
        return replace(own, gauges={**own.gauges, "abandoned": self._link.leaving})

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
        raise BackendError(f"FastDeploy failed{f' with {code}' if code else ''}: {message}")
    if event["event"] == "silence":
        raise DeadlineError(
            "FastDeploy gave nothing new for too long; allow more with FastDeployOptions(read_timeout=...), or look "
            "into its logs"
        )
    if event["event"] == "piece":
        return Piece(
            text=event["text"],
            token_ids=tuple(event["ids"]),
            logprobs=_logprobs(event, request.params.logprobs),
        )
    usage = Usage(
        prompt_tokens=len(request.token_ids),
        completion_tokens=event["count"],
        cached_tokens=event["cached"],
    )
    return Piece(finish_reason="length" if event["count"] >= most else "stop", usage=usage)


def _logprobs(event: Event, most: int) -> tuple[TokenLogprob, ...]:
    if not most:
        return ()
    try:
        return of_rows(event["ids"], event["logprobs"], most)
    except (ValueError, TypeError) as error:
        raise BackendError(f"FastDeploy gave log-probabilities that are none: {error}") from error
