"""A conversation that goes on: what was said, as messages and as the ids that the model has seen."""

from __future__ import annotations

import copy
import json
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from typing_extensions import Unpack

from ernie_accel.checkpoint.writer import replace_file
from ernie_accel.conversation_streams import AsyncConversationStream, ConversationStream
from ernie_accel.errors import ArgumentError, CheckpointError, ContextLengthError
from ernie_accel.generation import check_block
from ernie_accel.generation_async import AsyncGeneration
from ernie_accel.signatures import override, spelled_out
from ernie_accel.types import Completion, Message, Sampling, SamplingParams

if TYPE_CHECKING:
    from ernie_accel.engine.request import Handle, Request
    from ernie_accel.tokenizer import Tokenizer

__all__ = ["Conversation", "Overflow", "Speaker"]

Overflow = Literal["error", "drop_oldest"]
"""What happens when the context is full: ContextLengthError, or the oldest exchanges are forgotten."""

FORMAT = 1
MOST_SAVED_BYTES = 256 << 20


@dataclass(frozen=True)
class Speaker:
    """What a conversation needs of a model."""

    model: AsyncGeneration
    tokenizer: Tokenizer
    max_context: int
    vocab_size: int
    architecture: str

    @property
    def identity(self) -> dict[str, Any]:
        """What the meaning of ids depends on."""
        return {"vocab_size": self.vocab_size, "architecture": self.architecture}


@dataclass(frozen=True)
class _Point:
    """Where the conversation stood before an exchange."""

    messages: int
    tokens: int


class Conversation:
    """Made by ``Model.conversation``::

        conversation = model.conversation(system="You answer briefly.")
        print(conversation.send("What is the capital of France?"))
        print(conversation.send("And of Italy?"))
        conversation.rewind()
        conversation.save("chat.json")

    It keeps the ids of everything that the model read and wrote, so what is known already is not computed again: the
    prefix cache of the model has it. An answer becomes part of it when it is complete, or was cancelled. It belongs to
    one thread at a time; ``fork`` gives another.

    Attributes:
        params: How answers are drawn, where a call says nothing else.
        overflow: What happens when the context is full: ``"error"`` raises ContextLengthError, ``"drop_oldest"``
            forgets the oldest exchanges, never the system message, until a quarter of the context is free (or room
            for ``max_tokens``, if that is less).
    """

    def __init__(
        self,
        speaker: Speaker,
        system: str | None = None,
        params: SamplingParams | None = None,
        *,
        overflow: Overflow = "error",
    ) -> None:
        if overflow not in get_args(Overflow):
            raise ArgumentError(f"overflow={overflow!r}: must be one of {', '.join(get_args(Overflow))}")
        if system is not None and not isinstance(system, str):
            raise ArgumentError(f"system={system!r}: must be None or a string")
        self.params = override(params, {})
        self.overflow: Overflow = overflow
        self._speaker = speaker
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._ids: tuple[int, ...] = ()
        self._points: list[_Point] = []
        self._answer: weakref.ref[ConversationStream | AsyncConversationStream] | None = None

    @property
    def messages(self) -> list[Message]:
        """What was said, oldest first; a copy."""
        return copy.deepcopy(self._messages)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of everything that the model has read and written."""
        return self._ids

    def __len__(self) -> int:
        return len(self._points)

    def __repr__(self) -> str:
        return f"Conversation({len(self)} exchanges, {len(self._ids)} tokens)"

    @spelled_out
    def send(
        self,
        content: str,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """Say something and return the answer. Keywords and errors are those of ``Model.chat``; ``n`` must be 1.

        Where the call fails, the conversation is as it was before.
        """
        stream = self.stream(content, params, timeout=timeout, priority=priority, **sampling)
        try:
            return stream.result()
        except BaseException:
            stream.discard()
            raise

    @spelled_out
    def stream(
        self,
        content: str,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> ConversationStream:
        """Say something and return the answer token by token.

        The exchange becomes part of the conversation when the stream is at its end, is cancelled, or its ``with`` block
        is left; an answer that is cancelled stays as far as it came.

        Raises:
            ArgumentError: Another answer is under way; or as in ``Model.stream_chat``.
        """
        request, take = self._asked(content, params, timeout, priority, sampling)
        stream = ConversationStream(self._speaker.model._start(request), take, self._give_up)
        self._answer = weakref.ref(stream)  # one that is dropped is no longer under way
        return stream

    @spelled_out
    async def asend(
        self,
        content: str,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """``send`` for asyncio; ``block`` is that of ``Model.achat``.

        Where the call fails, or its task is cancelled, the conversation is as it was before.
        """
        stream = self.astream(content, params, block=block, timeout=timeout, priority=priority, **sampling)
        return await stream.result()

    @spelled_out
    def astream(
        self,
        content: str,
        params: SamplingParams | None = None,
        *,
        block: bool = True,
        timeout: float | None = None,
        priority: int = 0,
        **sampling: Unpack[Sampling],
    ) -> AsyncConversationStream:
        """``stream`` for asyncio, best in an ``async with`` block; ``block`` is that of ``Model.astream_chat``.

        The exchange becomes part of the conversation as with ``stream``: a task that is cancelled while it waits for
        the next piece leaves the answer as far as it came.
        """
        check_block(block)
        request, take = self._asked(content, params, timeout, priority, sampling)

        async def begin() -> Handle:
            return await self._speaker.model._astart(request, block=block)

        stream = AsyncConversationStream(begin, take, self._give_up)
        self._answer = weakref.ref(stream)
        return stream

    def rewind(self, exchanges: int = 1) -> None:
        """Forget the last exchanges.

        Raises:
            ArgumentError: There are not so many, or an answer is under way.
        """
        self._check_idle()
        if not isinstance(exchanges, int) or isinstance(exchanges, bool) or not 0 <= exchanges <= len(self):
            raise ArgumentError(f"exchanges={exchanges!r}: must be a whole number from 0 to {len(self)}")
        if exchanges:
            point = self._points[-exchanges]
            del self._points[-exchanges:]
            del self._messages[point.messages :]
            self._ids = self._ids[: point.tokens]

    def fork(self) -> Conversation:
        """Return a conversation that stands where this one does and goes its own way from there."""
        other = Conversation(self._speaker, None, self.params, overflow=self.overflow)
        other._messages, other._ids, other._points = self.messages, self._ids, list(self._points)
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write messages, ids and settings to a JSON file, at once or not at all.

        Raises:
            CheckpointError: It cannot be written there; the ``OSError`` is its ``__cause__``.
        """
        state = {
            "format": FORMAT,
            "model": self._speaker.identity,
            "overflow": self.overflow,
            "params": asdict(self.params),
            "messages": self._messages,
            "ids": list(self._ids),
            "points": [[point.messages, point.tokens] for point in self._points],
        }
        data = json.dumps(state, ensure_ascii=False).encode()
        replace_file(Path(path), lambda file: file.write(data))

    @classmethod
    def restore(cls, speaker: Speaker, path: str | os.PathLike[str]) -> Conversation:
        """Go on with a saved conversation: what ``Model.load_conversation`` does.

        Raises:
            ArgumentError: It is of a model with another vocabulary, or there is no such file.
            CheckpointError: The file is damaged.
        """
        state = _read(Path(path))
        try:
            return cls._restored(speaker, state)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, ArgumentError) and state.get("model") != speaker.identity:
                raise
            raise CheckpointError(f"{path}: is no saved conversation, or a damaged one ({error})") from error

    @classmethod
    def _restored(cls, speaker: Speaker, state: Mapping[str, Any]) -> Conversation:
        if state["model"] != speaker.identity:
            raise ArgumentError(
                f"the conversation was held with a model of {state['model']}, this one has {speaker.identity}: "
                "its ids mean something else here"
            )
        names = {field.name for field in fields(SamplingParams)}
        params = SamplingParams(**{name: value for name, value in state["params"].items() if name in names})
        loaded = cls(speaker, None, params, overflow=state["overflow"])
        loaded._messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in state["messages"]]
        loaded._ids = _ids(state["ids"], speaker.vocab_size)
        loaded._points = [_Point(int(messages), int(tokens)) for messages, tokens in state["points"]]
        for point in loaded._points:
            if not (0 <= point.messages < len(loaded._messages) and 0 <= point.tokens <= len(loaded._ids)):
                raise ValueError("its exchanges do not fit its messages")
        return loaded

    def _asked(
        self,
        content: str,
        params: SamplingParams | None,
        timeout: float | None,
        priority: int,
        sampling: Mapping[str, Any],
    ) -> tuple[Request, Callable[[Completion], None]]:
        """Return the request for the next answer, and what makes the exchange part of the conversation."""
        self._check_idle()
        if not isinstance(content, str):
            raise ArgumentError(f"content={content!r}: must be a string")
        settings = override(params or self.params, sampling)
        said: list[Message] = [*self._messages, {"role": "user", "content": content}]
        messages, ids = self._fitting(said, settings)
        request = self._speaker.model._turn_of(ids, settings, timeout, priority)
        return request, lambda done: self._take(messages, ids, bool(settings.stop), done)

    def _fitting(self, messages: list[Message], settings: SamplingParams) -> tuple[list[Message], list[int]]:
        """Return messages and their ids, the oldest dropped where that is wanted."""
        ids = self._prompt(messages)
        context = self._speaker.max_context
        if self.overflow == "error":
            if len(ids) > context:
                raise ContextLengthError(
                    f"the conversation has {len(ids)} tokens and the context holds {context}: rewind it, begin a new "
                    "one, or make it with overflow='drop_oldest'"
                )
            return messages, ids
        room = context - min(settings.max_tokens, context // 4)
        kept = list(messages)
        while len(ids) > room:
            first = next(i for i, message in enumerate(kept) if message["role"] != "system")
            following = [i for i in range(first + 1, len(kept)) if kept[i]["role"] == "user"]
            if not following and len(ids) <= context:
                break  # less room for the answer than wanted, and nothing left to forget
            if not following:
                raise ContextLengthError(
                    f"the last message alone has {len(ids)} tokens and the context holds {context}: shorten it"
                )
            del kept[first : following[0]]
            ids = self._speaker.tokenizer.encode_chat(kept)
        return kept, ids

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Return the ids so far and those of what is new; all anew where the template does not go on in that way."""
        added = self._speaker.tokenizer.encode_continuation(messages) if self._ids else None
        if not added:
            return self._speaker.tokenizer.encode_chat(messages)
        # Where the model has ended its turn itself, the end is the template's from here on.
        twice = self._ended and added[0] in self._speaker.tokenizer.eos_ids
        return [*(self._ids[:-1] if twice else self._ids), *added]

    def _take(self, messages: list[Message], prompt: list[int], stops: bool, done: Completion) -> None:
        """Make an exchange part of the conversation."""
        self._answer = None
        dropped = len(self._messages) + 1 - len(messages)
        if dropped:
            kept = [point for point in self._points if point.messages >= dropped + self._system]
            self._points = [_Point(point.messages - dropped, 0) for point in kept]
        shared = _common(self._ids, prompt)
        self._points = [replace(p, tokens=p.tokens if p.tokens <= shared else 0) for p in self._points]
        goes_on = shared >= len(self._ids) - self._ended  # else the prompt was made anew from the messages
        self._points.append(_Point(len(messages) - 1, shared if goes_on else 0))
        self._messages = [*messages, {"role": "assistant", "content": done.text}]
        self._ids = (*prompt, *done.token_ids)
        if stops and done.finish_reason == "stop" and self._ids[-1] not in self._speaker.tokenizer.eos_ids:
            self._ids = ()  # they hold the stop string, which the answer does not: made again from the messages
            self._points = [replace(point, tokens=0) for point in self._points]

    @property
    def _system(self) -> int:
        """Number of system messages, which are first and stay."""
        return sum(message["role"] == "system" for message in self._messages[:1])

    @property
    def _ended(self) -> bool:
        """Whether the ids end with an end that the model has drawn."""
        return bool(self._ids) and self._ids[-1] in self._speaker.tokenizer.eos_ids

    def _check_idle(self) -> None:
        if self._answer is not None and self._answer() is not None:
            raise ArgumentError(
                "an answer is under way in this conversation: read it to its end or cancel it first"
            )

    def _give_up(self) -> None:
        self._answer = None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ids(values: Any, vocab_size: int) -> tuple[int, ...]:
    ids = tuple(map(int, values))
    if any(not 0 <= i < vocab_size for i in ids):
        raise ValueError("it holds ids that the model does not have")
    return ids


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_SAVED_BYTES:
            raise CheckpointError(f"{path}: is too large for a saved conversation")
        state = json.loads(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no saved conversation, or a damaged one ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no saved conversation of format {FORMAT}")
    return state
