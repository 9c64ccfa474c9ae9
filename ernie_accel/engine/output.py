"""What a request has written so far: one thread writes, any number read."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from ernie_accel.stop import Decoder, TextTail
from ernie_accel.types import Chunk, FinishReason, TokenLogprob

__all__ = ["Output"]


class _State(NamedTuple):
    """What readers may see; replaced as a whole, so that they never see half of a change."""

    tokens: int = 0
    reason: FinishReason | None = None
    extra: bool = False
    """Whether the end came by itself and not with the last token."""


class Output:
    """Tokens with their text, in pieces that belong to one token each.

    Text is made by whoever reads it, so that the thread that computes for everybody does not: unless there are stop
    strings, which only the text can show.

    Attributes:
        ids: All tokens.
        logprobs: Of the tokens, where they were asked for.
    """

    def __init__(self, decoder: Decoder | None, stop: Sequence[str]) -> None:
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._tail = TextTail(decoder, stop)
        self._eager = bool(stop)
        self._silent = False  # the last token is a mark, not text
        self._pieces: list[str] = []
        self._flushed = False
        self._reading = threading.Lock()
        self._state = _State()

    @property
    def count(self) -> int:
        """Tokens that readers may see."""
        return self._state.tokens

    @property
    def reason(self) -> FinishReason | None:
        """Why it ended, None before."""
        return self._state.reason

    def append(self, token_id: int, *, mark: bool = False) -> bool:
        """Take the next token, which readers see after ``publish``; return whether a stop string is complete."""
        self.ids.append(token_id)
        self._silent = mark
        if self._eager:
            self._pieces.append("" if mark else self._tail.push(token_id))
        return self._tail.stopped

    def publish(self, reason: FinishReason | None = None) -> None:
        """Let readers see what was appended, and the end if there is a reason for it."""
        extra = reason is not None and (reason == "cancelled" or not self.ids)
        if reason is not None and self._eager:
            self._flush(extra)
        self._state = _State(len(self.ids), reason, extra)

    def chunks(self) -> int:
        """Return how many chunks there are so far."""
        return self._state.tokens + self._state.extra

    def chunk(self, index: int) -> Chunk | None:
        """Return chunk ``index``, None if it is not there yet."""
        state = self._state
        if index >= state.tokens + state.extra:
            return None
        pieces = self._read(state)
        last = state.reason is not None and index == state.tokens + state.extra - 1
        ids = tuple(self.ids[index : min(index + 1, state.tokens)])
        return Chunk(
            text=pieces[index],
            token_ids=ids,
            logprobs=tuple(self.logprobs[index : index + len(ids)]) if self.logprobs else None,
            finish_reason=state.reason if last else None,
        )

    def text(self) -> str:
        """Return all text so far."""
        return "".join(self._read(self._state))

    def _read(self, state: _State) -> list[str]:
        """Return the pieces of everything that ``state`` shows."""
        if self._eager:
            return self._pieces
        with self._reading:
            for index in range(len(self._pieces), state.tokens):
                mark = self._silent and state.reason is not None and index == state.tokens - 1
                self._pieces.append("" if mark else self._tail.push(self.ids[index]))
            if state.reason is not None:
                self._flush(state.extra)
            return self._pieces

    def _flush(self, extra: bool) -> None:
        """Add what was held back to the last piece."""
        if self._flushed:
            return
        self._flushed = True
        rest = self._tail.flush()
        if extra:
            self._pieces.append(rest)
        else:
            self._pieces[-1] += rest
