"""The engine over a server that runs already: FastDeploy's, or any other with the OpenAI API."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.engine import EngineInfo, Request
from ernie_accel.backends.fastdeploy.answer import Answer
from ernie_accel.backends.fastdeploy.fields import sampling
from ernie_accel.backends.fastdeploy.launch import DEFAULT_SEQUENCES
from ernie_accel.backends.fastdeploy.logprobs import Names
from ernie_accel.backends.fastdeploy.names import MAX_SEED
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.backends.fastdeploy.server import Server
from ernie_accel.backends.feed import Piece
from ernie_accel.backends.tasks import TaskEngine
from ernie_accel.errors import ArgumentError, ErnieAccelError, RemoteError, UnsupportedError
from ernie_accel.metrics import Metrics
from ernie_accel.tokenizer.tokenizer import Tokenizer

__all__ = ["RemoteEngine", "connect", "find_model"]

LAST_WORDS_SECONDS = 2.0
"""How long token counts may come after the end of an answer."""
METRICS_SECONDS = 3.0
UNBOUNDED_CONTEXT = 1 << 30
"""Stands for the context of a server that does not say it: it refuses what is too long itself."""
GAUGES = (
    *("num_requests_running", "num_requests_waiting"),
    *("max_gpu_block_num", "available_gpu_block_num", "free_gpu_block_num"),
)
COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
_METRIC = re.compile(r"^fastdeploy:(\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE)

Body = dict[str, Any]


def connect(
    config: ModelConfig | None,
    options: LoadOptions,
    own: FastDeployOptions,
    *,
    queue_size: int,
    tokenizer: Tokenizer | None = None,
) -> RemoteEngine:
    """Look at a server, find its model, and return an engine over it; ``tokenizer`` gives log-probabilities their ids.

    Raises:
        MissingExtraError: httpx is not installed.
        BackendUnavailableError: The server is not ready, or nobody answers in time.
        RemoteError: It refuses the key, or is none of the OpenAI API.
        ArgumentError: It has no model of that name, or several and none was named.
    """
    model = find_model(own)
    server = Server(own)
    context = options.max_context or _number(model.get("max_model_len"))
    if context is None and config is not None:
        context = config.max_position_embeddings
    info = EngineInfo(
        backend="fastdeploy",
        vocab_size=config.vocab_size if config is not None else 0,
        max_context=context or UNBOUNDED_CONTEXT,
        precision="the server's",
        kv_precision="the server's",
        max_sequences=options.max_batch or DEFAULT_SEQUENCES,
        capabilities=frozenset({"text", "chat", "structure"}),
        details={"endpoint": server.endpoint, "model": model["id"], "dialect": own.dialect},
        max_seed=MAX_SEED[own.dialect],
    )
    return RemoteEngine(server, info, own, Names(tokenizer), queue_size=queue_size)


def find_model(own: FastDeployOptions) -> dict[str, Any]:
    """Look at a server's health and return its model as ``/v1/models`` has it. Errors are those of ``connect``."""
    with ThreadPoolExecutor(1) as thread:  # of its own: this one may run an event loop, as in a notebook
        return _choose(thread.submit(lambda: asyncio.run(_look(own))).result(), own)


async def _look(own: FastDeployOptions) -> list[dict[str, Any]]:
    server = Server(own)
    try:
        if own.dialect == "fastdeploy":
            await server.health()
        return await server.models()
    finally:
        await server.close()


def _choose(models: list[dict[str, Any]], own: FastDeployOptions) -> dict[str, Any]:
    names = [model["id"] for model in models]
    if own.model is None and len(models) == 1:
        return models[0]
    if own.model in names:
        return models[names.index(own.model)]
    raise ArgumentError(
        f"FastDeployOptions(model={own.model!r}): the server has {', '.join(map(repr, names)) or 'no model'}; name one"
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


class RemoteEngine(TaskEngine):
    """Whole requests over HTTP.

    Prompts that are ids go to ``/v1/completions`` as they are, so what is continued is what was encoded here. Where no
    tokenizer is at hand, texts go there too, and conversations to ``/v1/chat/completions``. Ids come back where the
    server gives them (FastDeploy does).
    """

    def __init__(
        self, server: Server, info: EngineInfo, own: FastDeployOptions, names: Names, *, queue_size: int
    ) -> None:
        super().__init__(info, concurrency=info.max_sequences, queue_size=queue_size)
        self._server = server
        self._own = own
        self._names = names
        self._model = str(info.details["model"])

    def refuse(self, request: Request) -> None:
        """Refuse what the server cannot be asked."""
        self._fields(request, 0)
        if request.turn is None and self._own.dialect == "openai" and request.params.structure:
            raise UnsupportedError(
                "an output with a structure is part of the OpenAI API for chat without a local tokenizer alone; "
                "backends 'native' and 'reference' hold any output to one"
            )

    async def pieces(self, request: Request, seed: int) -> AsyncGenerator[Piece, None]:
        """Stream one completion."""
        chat = request.turn is not None
        path = "/v1/chat/completions" if chat else "/v1/completions"
        async with self._server.stream(path, self._body(request, seed)) as stream:
            answer = Answer(chat, request.params.logprobs, self._names)
            async with aclosing(_until_the_end(stream, answer)) as found:
                async for piece in found:
                    yield piece
            yield answer.last()

    async def shut(self) -> None:
        """Close the connections."""
        await self._server.close()

    def metrics(self) -> Metrics:
        """Return what was counted here; with FastDeploy, ``server_...`` are its own figures as far as it tells them."""
        own = super().metrics()
        if self._own.dialect != "fastdeploy":
            return own
        text = self.ask(self._server.metrics(), METRICS_SECONDS) or ""
        found = _whole_numbers(text)
        gauges = {f"server_{name}": found[name] for name in GAUGES if name in found}
        counters = {f"server_{name}": found[name] for name in COUNTERS if name in found}
        return replace(own, gauges={**own.gauges, **gauges}, counters={**own.counters, **counters})

    def _fields(self, request: Request, seed: int) -> Body:
        own = self._own
        fields = sampling(
            request.params, seed, own.dialect, guided=own.guided_decoding, logprobs=own.logprobs
        )
        if request.turn is not None and "logprobs" in fields:
            fields.update(logprobs=True, top_logprobs=fields["logprobs"])
        return fields

    def _body(self, request: Request, seed: int) -> Body:
        body = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        if self._own.dialect == "fastdeploy":
            body["return_token_ids"] = True
        if request.turn is None:
            body["prompt"] = request.text if request.text is not None else list(request.token_ids)
        else:
            body["messages"] = [dict(message) for message in request.turn.messages]
            if request.turn.tools:
                body["tools"] = [dict(tool) for tool in request.turn.tools]
        return body | self._fields(request, seed)


def _whole_numbers(text: str) -> dict[str, int]:
    """Return the metrics by name, those that are no finite number left out."""
    found: dict[str, int] = {}
    for name, value in _METRIC.findall(text):
        with suppress(ValueError, OverflowError):
            found[name] = int(float(value))
    return found


async def _until_the_end(stream: AsyncIterator[str], answer: Answer) -> AsyncGenerator[Piece, None]:
    """Read events until ``[DONE]``; once the answer has ended, only for a moment more."""
    end: float | None = None
    while True:
        if answer.ended and end is None:
            end = time.monotonic() + LAST_WORDS_SECONDS
        try:
            event = await _next(stream, end)
        except StopAsyncIteration:
            break
        except ErnieAccelError:
            if answer.ended:
                break
            raise
        if event == "[DONE]":
            break
        piece = answer.take(event)
        if piece is not None:
            yield piece
    if not answer.ended:
        raise RemoteError("the server ended its stream in the middle of an answer")


async def _next(stream: AsyncIterator[str], end: float | None) -> str:
    """Wait for the next event, until ``end`` if that is given; StopAsyncIteration when there is none.

    Not ``asyncio.wait_for``, which before Python 3.12 may lose that its caller was cancelled.
    """
    if end is None:
        return await anext(stream)

    async def read() -> str | None:
        return await anext(stream, None)

    task = asyncio.ensure_future(read())
    try:
        await asyncio.wait({task}, timeout=max(0.0, end - time.monotonic()))
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    found = None if task.cancelled() else task.result()
    if found is None:
        raise StopAsyncIteration
    return found
