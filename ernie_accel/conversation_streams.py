"""Answers in a conversation while they come: they become part of it at their end."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from types import TracebackType

from ernie_accel.engine.request import Handle
from ernie_accel.engine.stream import AsyncTokenStream, TokenStream, completed
from ernie_accel.types import Chunk, Completion

__all__ = ["AsyncConversationStream", "ConversationStream"]


class ConversationStream(TokenStream):
    """An answer in a conversation, which becomes part of it at its end; see ``Conversation.stream``."""

    def __init__(
        self, handle: Handle, take: Callable[[Completion], None], give_up: Callable[[], None]
    ) -> None:
        super().__init__(handle)
        self._take = take
        self._give_up = give_up
        self._recorded = False
        self._recording = threading.RLock()

    def __next__(self) -> Chunk:
        try:
            chunk = super().__next__()
        except BaseException:  # Ctrl-C among them, and then nobody waits for the rest
            self.handle.cancel()
            self._record()
            raise
        if chunk.finish_reason is not None:
            self._record()
        return chunk

    def cancel(self) -> None:
        """End the answer within one step; what there is of it stays in the conversation."""
        super().cancel()
        self._record()

    def discard(self) -> None:
        """End the answer within one step and leave the conversation as it was; harmless once it is part of it."""
        self.handle.cancel()
        if not self._recorded:
            self._recorded = True
            self._give_up()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the whole."""
        done = super().result(timeout)
        self._record()
        return done

    def _record(self) -> None:
        """Hand the answer to the conversation, once; one that failed is no answer."""
        with self._recording:  # who cancels may be another thread
            if self._recorded:
                return
            self._recorded = True
            try:
                done = self.handle.result()
            except BaseException:
                self._give_up()
                raise
            self._take(done)


class AsyncConversationStream(AsyncTokenStream):
    """``ConversationStream`` for asyncio; see ``Conversation.astream``.

    ``cancel`` cannot wait, so that an answer which it ends becomes part of the conversation when the ``async with``
    block is left, or ``aclose`` or ``result`` awaited.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[Handle]],
        take: Callable[[Completion], None],
        give_up: Callable[[], None],
    ) -> None:
        super().__init__(begin)
        self._take = take
        self._give_up = give_up
        self._recorded = False

    async def __anext__(self) -> Chunk:
        try:
            chunk = await super().__anext__()
        except StopAsyncIteration:
            raise
        except BaseException:  # the task is cancelled, say, and then nobody waits for the rest
            await self.aclose()
            raise
        if chunk.finish_reason is not None:
            await self.result()
        return chunk

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the answer within one step; what there is of it stays in the conversation."""
        self.cancel()
        if self._handle is None:  # nothing was asked of the model yet
            self.discard()
        if self._recorded:
            return
        await self.result()

    def discard(self) -> None:
        """End the answer within one step and leave the conversation as it was; harmless once it is part of it."""
        self.cancel()
        if not self._recorded:
            self._recorded = True
            self._give_up()

    async def result(self) -> Completion:
        """Wait for the end and return the whole. Cancelling the task leaves the conversation as it was."""
        try:
            done = await completed(await self._started())
        except BaseException:
            self.discard()
            raise
        if not self._recorded:
            self._recorded = True
            self._take(done)
        return done
