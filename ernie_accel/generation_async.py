"""The generating methods of ``Model`` for asyncio: twins of those in ``generation.py``."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import overload

from typing_extensions import Unpack

from ernie_accel.engine.request import Handle, Request
from ernie_accel.engine.stream import AsyncTokenStream, completed
from ernie_accel.generation import UNDER_WAY, Generation, Messages, Prompts, TextOrIds, check_block, is_one
from ernie_accel.signatures import override, single, spelled_out
from ernie_accel.types import Completion, Sampling, SamplingParams

__all__ = ["AsyncGeneration"]


class AsyncGeneration(Generation):
    """agenerate, astream, achat, astream_chat. They take the keywords of their twins, and:

    * ``block``: where the queue of requests is full, wait for room; False raises QueueFullError.
    """

    @overload
    async def agenerate(
        self,
        prompt: TextOrIds,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...

    @overload
    async def agenerate(
        self,
        prompt: Prompts,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]: ...

    @spelled_out
    async def agenerate(
        self,
        prompt: TextOrIds | Prompts,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Completion | list[Completion]:
        """``generate`` for asyncio. Cancelling the task ends what was asked for.

        Where the queue of requests is full, it waits for room, or raises QueueFullError if ``block`` is false.
        """
        settings = override(params, sampling)
        check_block(block)
        if is_one(prompt):
            (request,) = self._requests([prompt], settings, timeout, priority)
            return await completed(await self._astart(request, block=block))
        return await self._aall_of(self._requests(list(prompt), settings, timeout, priority), block)

    @spelled_out
    def astream(
        self,
        prompt: TextOrIds,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> AsyncTokenStream:
        """``stream`` for asyncio: ``async for chunk in model.astream(...)``.

        Mistakes in arguments are raised here, except those within a structure: whether a schema, expression or grammar
        can be followed is worked out beside the event loop, when the first piece is awaited. Then too the request
        is queued: with ``block`` false that is where QueueFullError is raised.
        """
        check_block(block)
        return self._astream(self._one(prompt, override(params, sampling), timeout, priority), block)

    @spelled_out
    async def achat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Messages | None = None,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """``chat`` for asyncio. ``block`` is that of ``agenerate``."""
        settings = override(params, sampling)
        check_block(block)
        turn = self._turn(messages, tools, settings, timeout, priority)
        return await completed(await self._astart(turn, block=block))

    @spelled_out
    def astream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Messages | None = None,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> AsyncTokenStream:
        """``stream_chat`` for asyncio. Mistakes are raised where ``astream`` raises them."""
        settings = single(override(params, sampling))
        check_block(block)
        return self._astream(self._turn(messages, tools, settings, timeout, priority), block)

    async def _aall_of(self, requests: Sequence[Request], block: bool) -> list[Completion]:
        done: list[Completion] = []
        under_way: deque[Handle] = deque()
        try:
            for request in requests:
                if len(under_way) >= UNDER_WAY:
                    done.append(await completed(under_way.popleft()))
                under_way.append(await self._astart(request, block=block))
            while under_way:
                done.append(await completed(under_way.popleft()))
        except BaseException:
            for handle in under_way:
                handle.cancel()
            raise
        return done

    def _astream(self, request: Request, block: bool) -> AsyncTokenStream:
        async def begin() -> Handle:
            return await self._astart(request, block=block)

        return AsyncTokenStream(begin)

    @abstractmethod
    async def _astart(self, request: Request, *, block: bool = True) -> Handle:
        """Queue a request without holding up the event loop."""
