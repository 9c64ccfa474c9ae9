"""The streams that a caller iterates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType

from ernie_accel.engine.request import Handle
from ernie_accel.types import Chunk, Completion

__all__ = ["AsyncTokenStream", "TokenStream", "completed", "rung"]


class TokenStream:
    """An iterator of ``Chunk``, one for each token; their texts together are the text of ``result()``.

    Leaving a ``with`` block, dropping the stream, or Ctrl-C ends the generation and frees its memory::

        with model.stream("Once upon a time") as stream:
            for chunk in stream:
                print(chunk, end="", flush=True)
        print(stream.result().timings)
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self._count = 0
        self._reason: str | None = None

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> Chunk:
        chunk = next(self.handle)
        self._count += len(chunk.token_ids)
        self._reason = chunk.finish_reason
        return chunk

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        return f"<TokenStream: {self._count} tokens, {self._reason or 'not at its end'}>"

    def cancel(self) -> None:
        """End the generation within one step; one last chunk with finish reason "cancelled" may follow.

        Harmless after the end. May be called from any thread.
        """
        self.handle.cancel()

    def close(self) -> None:
        """``cancel``, under the name that generators and files have."""
        self.cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end, whatever has been iterated so far, and return the whole.

        Raises:
            DeadlineError: ``timeout`` seconds went by; the generation goes on.
        """
        return self.handle.result(timeout)


class AsyncTokenStream:
    """``TokenStream`` for asyncio. Cancelling the task that waits for it, or dropping it, ends the generation::

        async with model.astream("Once upon a time") as stream:
            async for chunk in stream:
                print(chunk, end="", flush=True)

    Args:
        begin: Gives the handle; awaited before the first piece, since the queue may be full until then.
    """

    def __init__(self, begin: Callable[[], Awaitable[Handle]]) -> None:
        self._begin = begin
        self._handle: Handle | None = None
        self._cancelled = False
        self._count = 0
        self._reason: str | None = None
        self._beginning = asyncio.Lock()

    def __aiter__(self) -> AsyncTokenStream:
        return self

    async def __anext__(self) -> Chunk:
        handle = await self._started()
        while True:
            chunk = handle.take()
            if chunk is not None:
                self._count += len(chunk.token_ids)
                self._reason = chunk.finish_reason
                return chunk
            if handle.exhausted:
                raise StopAsyncIteration
            await _news(handle, done=False)

    async def __aenter__(self) -> AsyncTokenStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        return f"<AsyncTokenStream: {self._count} tokens, {self._reason or 'not at its end'}>"

    def cancel(self) -> None:
        """End the generation within one step. Harmless after the end."""
        self._cancelled = True
        if self._handle is not None:
            self._handle.cancel()

    async def aclose(self) -> None:
        """``cancel``, under the name that asynchronous generators have."""
        self.cancel()

    async def result(self) -> Completion:
        """Wait for the end, whatever has been iterated so far, and return the whole."""
        return await completed(await self._started())

    async def _started(self) -> Handle:
        async with self._beginning:  # several tasks may wait for one stream
            if self._handle is None:
                self._handle = await self._begin()
                if self._cancelled:
                    self._handle.cancel()
        return self._handle


async def completed(handle: Handle) -> Completion:
    """Wait for the end of a request; cancelling the task cancels it."""
    while not handle.done:
        await _news(handle, done=True)
    return handle.result()


async def rung(
    notify: Callable[[Callable[[], object]], object], lost: Callable[[], object] = lambda: None
) -> None:
    """Wait in an event loop until what was given to ``notify`` is called, from any thread.

    ``lost`` is called instead if the loop was closed meanwhile, without waiting for its tasks.
    """
    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(news.set)
        except RuntimeError:
            lost()

    notify(wake)
    await news.wait()


async def _news(handle: Handle, *, done: bool) -> None:
    try:
        await rung(partial(handle.notify, done=done), handle.cancel)
    except asyncio.CancelledError:
        handle.cancel()
        raise
