"""The generating methods of ``Model`` that wait, or return a handle; ``generation_async.py`` has those for asyncio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import TypeIs, Unpack

from ernie_accel.engine.request import Handle, Request, Turn
from ernie_accel.engine.stream import TokenStream
from ernie_accel.errors import ArgumentError
from ernie_accel.progress import check_progress, reporting
from ernie_accel.signatures import override, single, spelled_out
from ernie_accel.types import Completion, Progress, Sampling, SamplingParams

__all__ = ["UNDER_WAY", "Generation", "Ids", "Messages", "Prompts", "TextOrIds", "check_block", "is_one"]

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
TextOrIds = str | Ids
Prompts = list[str] | list[list[int]] | list[tuple[int, ...]]
Messages = Sequence[Mapping[str, Any]]

UNDER_WAY = 256
"""Most prompts of one call that the engine holds at a time: enough for every batch, little memory."""


class Generation(ABC):
    """generate, stream, submit, chat, stream_chat, submit_chat. All take the same keywords:

    * every field of ``SamplingParams``, which overrides the one of ``params``; None means that it was not given;
    * ``timeout``: seconds from the call after which the request fails with DeadlineError;
    * ``priority``: requests of a higher one are started first and keep their memory longest.
    """

    @overload
    def generate(
        self,
        prompt: TextOrIds,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        progress: bool | Progress | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        progress: bool | Progress | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]: ...

    @spelled_out
    def generate(
        self,
        prompt: TextOrIds | Prompts,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        progress: bool | Progress | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion | list[Completion]:
        """Continue a prompt, or several that are decoded together.

        A string is encoded as it is: no template, no begin token, and what reads like a special token is plain text.

        Args:
            prompt: A string or its token ids gives one Completion; a list of strings or of lists of ids gives a list,
                in the same order. [] gives [].
            params: How to draw and when to end.
            timeout: Seconds after which the call fails with DeadlineError; None: never.
            priority: Requests of a higher one are started first and keep their memory longest.
            progress: For a list: None shows a bar on stderr if that is a terminal or a notebook; True always; False
                never; a callable is called as ``progress("prompts", done, total)``.
            **sampling: Fields of ``SamplingParams``; each overrides the one of ``params``. One seed for several prompts
                means that seed for each, so that each gets what it would get alone.

        Raises:
            ArgumentError: A value can never work, or a prompt is empty.
            ContextLengthError: A prompt is longer than the context.
            TokenizerError: The prompt is text, or ``stop`` is given, and the checkpoint has no tokenizer.
            CapacityError: Memory does not suffice even with nothing else under way.
            DeadlineError: The timeout is over.
            ClosedError: The model was closed.
        """
        settings = override(params, sampling)
        check_progress(progress)
        if is_one(prompt):
            return self._all_of(self._requests([prompt], settings, timeout, priority), False)[0]
        requests = self._requests(list(prompt), settings, timeout, priority)
        return self._all_of(requests, progress if len(requests) > 1 else False)

    @spelled_out
    def stream(
        self,
        prompt: TextOrIds,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> TokenStream:
        """Continue one prompt, token by token. Arguments and errors are those of ``generate``; ``n`` must be 1.

        Mistakes in arguments are raised here, not at the first token.
        """
        return TokenStream(self._start(self._one(prompt, override(params, sampling), timeout, priority)))

    @spelled_out
    def submit(
        self,
        prompt: TextOrIds,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Handle:
        """Begin to continue one prompt and return at once. Arguments and errors are those of ``generate``.

        The handle has ``result(timeout)``, ``cancel()`` and ``done``, and is an iterator of chunks.

        Args:
            prompt: A string or its token ids.
            params: How to draw and when to end.
            block: Where the queue of requests is full, wait for room.
            timeout: As in ``generate``.
            priority: As in ``generate``.
            **sampling: As in ``generate``.

        Raises:
            QueueFullError: The queue is full, and ``block`` is false.
        """
        settings = override(params, sampling)
        check_block(block)
        if not is_one(prompt):
            raise ArgumentError("prompt: submit takes one prompt; call it for each of them")
        (request,) = self._requests([prompt], settings, timeout, priority)
        return self._start(request, block=block)

    @spelled_out
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Messages | None = None,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """Answer a conversation, rendered with the checkpoint's chat template.

        Only the template's own text makes special tokens, so no message can forge a role or an end. ``reply`` of the
        result has thoughts, answer and tool calls apart.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``, oldest first.
            params: As in ``generate``, like everything that follows but ``tools``.
            tools: JSON descriptions of functions that the model may ask to have called, for templates that know tools.
            timeout: As in ``generate``.
            priority: As in ``generate``.
            **sampling: As in ``generate``.

        Raises:
            TokenizerError: The checkpoint has no tokenizer, or its template fails.
            ArgumentError, ContextLengthError, CapacityError, ClosedError: As in ``generate``.
        """
        settings = override(params, sampling)
        return self._all_of([self._turn(messages, tools, settings, timeout, priority)], False)[0]

    @spelled_out
    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Messages | None = None,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> TokenStream:
        """Answer a conversation, token by token. Arguments and errors are those of ``chat``; ``n`` must be 1."""
        settings = single(override(params, sampling))
        return TokenStream(self._start(self._turn(messages, tools, settings, timeout, priority)))

    @spelled_out
    def submit_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Messages | None = None,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Handle:
        """Begin to answer a conversation and return at once, as ``submit`` does. Arguments are those of ``chat``.

        Many conversations are answered together by submitting each of them first::

            handles = [model.submit_chat(messages) for messages in conversations]
            answers = [handle.result() for handle in handles]

        Raises:
            QueueFullError: The queue is full, and ``block`` is false.
        """
        settings = override(params, sampling)
        check_block(block)
        return self._start(self._turn(messages, tools, settings, timeout, priority), block=block)

    def _one(
        self, prompt: TextOrIds, params: SamplingParams, timeout: float | None, priority: int
    ) -> Request:
        """Return the request of a stream."""
        if not is_one(prompt):
            raise ArgumentError("prompt: a stream continues one prompt; use generate for a list of them")
        (request,) = self._requests([prompt], single(params), timeout, priority)
        return request

    def _turn(
        self,
        messages: Messages,
        tools: Messages | None,
        params: SamplingParams,
        timeout: float | None,
        priority: int,
    ) -> Request:
        """Return the request for an assistant's turn, whose result has its parts."""
        prompt = self._encode_chat(messages, tools)
        (request,) = self._requests([prompt], params, timeout, priority, turn=True)
        return request

    def _turn_of(self, ids: Ids, params: SamplingParams, timeout: float | None, priority: int) -> Request:
        """Return the request for the next turn of a conversation that is ids already, up to where that turn begins."""
        (request,) = self._requests([ids], single(params), timeout, priority, turn=True)
        return request

    def _all_of(self, requests: Sequence[Request], progress: bool | Progress | None) -> list[Completion]:
        """Return the results of all, holding few in the engine at a time."""
        done: list[Completion] = []
        under_way: deque[Handle] = deque()
        with reporting(progress, unit="prompt") as report:

            def finish_first() -> None:
                done.append(under_way[0].result())
                under_way.popleft()  # not before: what interrupts the line above cancels it below
                if report is not None:
                    report("prompts", len(done), len(requests))

            try:
                under_way.extend(self._start_all(requests[:UNDER_WAY]))
                for request in requests[UNDER_WAY:]:
                    finish_first()
                    under_way.extend(self._start_all([request]))
                while under_way:
                    finish_first()
            except BaseException:
                for handle in under_way:
                    handle.cancel()
                raise
        return done

    def _start(self, request: Request, *, block: bool = True) -> Handle:
        return self._start_all([request], block=block)[0]

    @abstractmethod
    def _encode_chat(self, messages: Messages, tools: Messages | None) -> list[int] | Turn:
        """Render and encode a conversation, up to where the answer begins; or leave that to the engine."""

    @abstractmethod
    def _requests(
        self,
        prompts: Sequence[TextOrIds | Turn],
        params: SamplingParams,
        timeout: float | None,
        priority: int,
        *,
        turn: bool = False,
    ) -> list[Request]:
        """Make one request for each prompt; raise what is wrong with any of them.

        ``turn`` says that each prompt ends where an assistant's turn begins.
        """

    @abstractmethod
    def _start_all(self, requests: Sequence[Request], *, block: bool = True) -> Sequence[Handle]:
        """Queue requests that begin together."""


def check_block(block: object) -> None:
    """Raise ArgumentError unless it is True or False."""
    if not isinstance(block, bool):
        raise ArgumentError(f"block={block!r}: must be True or False; timeout=... takes seconds")


def is_one(prompt: TextOrIds | Prompts, name: str = "prompt") -> TypeIs[TextOrIds]:
    """Tell one prompt (a string, or ids) from a list of prompts."""
    if isinstance(prompt, str):
        return True
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1
    first = prompt[0] if isinstance(prompt, Sequence) and len(prompt) > 0 else prompt
    if isinstance(first, Mapping) and "role" in first:
        raise ArgumentError(
            f"{name}: messages of a conversation go to chat(messages), stream_chat or submit_chat"
        )
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise ArgumentError(f"{name}={prompt!r}: must be a string, a list of token ids, or a list of either")
    return len(prompt) > 0 and not isinstance(prompt[0], (str, Sequence, np.ndarray))
