"""One answer of a server with the OpenAI API, read event by event."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ernie_accel.backends.fastdeploy.fields import finish_reason
from ernie_accel.backends.fastdeploy.logprobs import Names, shown
from ernie_accel.backends.feed import Piece
from ernie_accel.errors import RemoteError
from ernie_accel.reply import ToolCall
from ernie_accel.types import TokenLogprob, Usage

__all__ = ["Answer"]

_WITHOUT = (
    "the server gave an answer without the log-probabilities that were asked for: FastDeploy gives them where it was "
    "started with --enable-logprob"
)


class Answer:
    """Reads the events of one answer.

    Args:
        chat: It is one of ``/v1/chat/completions``.
        most: How many alternatives of each token were asked for, 0 for no log-probabilities.
        names: For their ids.
    """

    def __init__(self, chat: bool, most: int, names: Names) -> None:
        self._chat = chat
        self._most = most
        self._names = names
        self._text = False
        self._logprobs = False
        self._reason: object = None
        self._usage: Usage | None = None
        self._calls: dict[int, tuple[str, str]] = {}

    @property
    def ended(self) -> bool:
        """Whether a reason for an end came."""
        return self._reason is not None

    def take(self, event: str) -> Piece | None:
        """Read an event; None if it holds nothing of the answer."""
        try:
            found = json.loads(event)
            if "error" in found:
                raise _failure(found)
            self._take_usage(found.get("usage"))
            if not found["choices"]:
                return None
            return self._take_choice(found["choices"][0])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise RemoteError(
                f"the server sent an event that is none of the API ({type(error).__name__}: {error}): {event[:200]}"
            ) from error

    def last(self) -> Piece:
        """Return the end: why, with the counts, and the calls of tools."""
        try:
            reason = finish_reason(self._reason)
        except KeyError:
            raise RemoteError(f"the server ended an answer for an unknown reason, {self._reason!r}") from None
        if self._most and self._text and not self._logprobs:
            raise RemoteError(_WITHOUT)
        return Piece(finish_reason=reason, usage=self._usage, tool_calls=self._tool_calls())

    def _take_choice(self, choice: Mapping[str, Any]) -> Piece | None:
        self._reason = choice.get("finish_reason") or self._reason
        delta = choice.get("delta") or {} if self._chat else choice
        text = delta.get("content" if self._chat else "text") or ""
        thinking = delta.get("reasoning_content") or ""
        ids = choice.get("completion_token_ids") or delta.get("completion_token_ids") or ()
        if not (isinstance(text, str) and isinstance(thinking, str)):
            raise TypeError("text that is no string")
        if not all(isinstance(i, int) and i >= 0 for i in ids):
            raise TypeError("token ids that are none")
        for call in delta.get("tool_calls") or () if self._chat else ():
            self._take_call(call)
        logprobs = self._read_logprobs(ids, choice.get("logprobs")) if self._most else ()
        ids = ids or [one.token_id for one in logprobs]
        if not (text or thinking or ids):
            return None
        self._text = True
        return Piece(text=text, thinking=thinking, token_ids=tuple(ids), logprobs=logprobs)

    def _read_logprobs(self, ids: Sequence[int], found: Any) -> tuple[TokenLogprob, ...]:
        """Those of new tokens, whose ids may have come beside."""
        tokens = shown(found)
        if ids and not tokens:
            raise RemoteError(_WITHOUT)
        if ids and len(ids) != len(tokens):
            raise ValueError(f"{len(ids)} tokens with the log-probabilities of {len(tokens)}")
        self._logprobs = self._logprobs or bool(tokens)
        known: Sequence[int | None] = ids or [None] * len(tokens)
        return tuple(
            self._names.logprob(token, own, self._most) for token, own in zip(tokens, known, strict=True)
        )

    def _take_call(self, call: Mapping[str, Any]) -> None:
        """Calls come in parts: the name, then the text of the arguments."""
        function = call.get("function") or {}
        name, arguments = self._calls.get(call.get("index", 0), ("", ""))
        parts = (name + (function.get("name") or ""), arguments + (function.get("arguments") or ""))
        self._calls[call.get("index", 0)] = parts

    def _take_usage(self, usage: Mapping[str, Any] | None) -> None:
        if usage is None:
            return
        details = usage.get("prompt_tokens_details") or {}
        self._usage = Usage(
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
        )

    def _tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(name, _arguments(name, text)) for name, text in self._calls.values())


def _arguments(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RemoteError(f"the server sent arguments for {name!r} that are no JSON object: {text[:200]}")
    return found


def _failure(found: Mapping[str, Any]) -> RemoteError:
    error = found["error"]
    message = error.get("message", error) if isinstance(error, Mapping) else error
    code = error.get("code") if isinstance(error, Mapping) else None
    status = code if isinstance(code, int) else None
    return RemoteError(f"the server failed in the middle of an answer: {str(message)[:500]}", status)
