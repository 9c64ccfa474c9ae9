"""Drawn tokens become text: half characters and what may still turn into a stop string are held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Decoder", "TextTail"]


class Decoder(Protocol):
    """Incremental detokenisation, as ``Tokenizer.stream()`` gives it."""

    def push(self, token_id: int, /) -> str:
        """Return the characters that this token completes."""
        ...

    def flush(self) -> str:
        """Return what is left, with U+FFFD for bytes that never became a character."""
        ...


class TextTail:
    """The end of a text that is still growing.

    The text ends before the stop string that is complete first (of two that are complete at once: the longer), which
    does not depend on how the text was cut into tokens.

    Attributes:
        stopped: Whether a stop string was met; nothing comes after it.
    """

    def __init__(self, decoder: Decoder | None, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""

    def push(self, token_id: int) -> str:
        """Take the next token and return the text that is certain now."""
        return self.feed(self._decoder.push(token_id)) if self._decoder else ""

    def flush(self) -> str:
        """Return what was held back, at the end of the generation."""
        certain = self.feed(self._decoder.flush()) if self._decoder else ""
        rest, self._held = self._held, ""
        return certain + rest

    def feed(self, piece: str) -> str:
        """Take the next piece of text, from whoever made it, and return what is certain now."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(at + len(word), at) for word in self._stop if (at := text.find(word)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        cut = len(text) - self._overlap(text)
        self._held = text[cut:]
        return text[:cut]

    def _overlap(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(word) for word in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self._stop):
                return size
        return 0
