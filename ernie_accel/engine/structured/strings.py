"""Masks inside JSON strings that nothing but their length bounds, without looking at every token."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Strings", "Texts"]

Mask = npt.NDArray[np.uint32]

LONGEST = 32
"""Characters of the longest tokens that are told apart by their length; longer ones are looked at like others."""

FAR = 128
"""Characters that are tried at once to see how much room a string has."""

_TEXT = re.compile(r'[^"\\\x00-\x1F\x7F]+')
"""What stands for itself in a JSON string."""


class Texts:
    """The tokens that are plain text within a JSON string, by their number of characters.

    Args:
        tokens: Bytes of all tokens of the model, b"" for those that are no text.

    Attributes:
        lengths: Characters of each token that is plain text, 0 of others.
        longest: The largest of them.
        upto: Masks of those of at most so many characters, uint32 [longest + 1, words].
        rest: Bytes of all other tokens and of one for each byte; b"" for those that are plain text.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens
        self._bytes = {token[0]: i for i, token in reversed(list(enumerate(tokens))) if len(token) == 1}
        self.lengths = [_length(token) for token in tokens]
        self.longest = max(self.lengths, default=0)
        self.upto = _masks(self.lengths, self.longest)
        kept = set(self._bytes.values())
        self.rest = [b"" if n and i not in kept else tokens[i] for i, n in enumerate(self.lengths)]

    def spelled(self, data: bytes) -> list[int] | None:
        """Return a token for each byte, None if there is none for one of them."""
        ids = [self._bytes[byte] for byte in data if byte in self._bytes]
        return ids if len(ids) == len(data) else None

    def in_rest(self, token_id: int) -> list[int] | None:
        """Return ids of ``rest`` that write what a token writes, None if there are none."""
        return [token_id] if self.rest[token_id] else self.spelled(self._tokens[token_id])


class Strings:
    """Follows an output beside its matcher, and works out masks where a string will be full soon.

    There a token that is plain text may come if it is not longer than what is left, and other tokens are few: a second
    matcher, which knows only them, finds them fast. That is so for schemas of which ``only_lengths_bound`` is true.
    A character that occurs nowhere in the schema, and so in none of the texts that it may ask for, tells by how
    often it could be written whether the output is inside a string, and how much is left.

    Args:
        matcher: llguidance's of the same grammar over ``texts.rest``, at the same place.
        texts: Of the vocabulary.
        probe: Ids of the bytes of that character.
    """

    def __init__(self, matcher: Any, texts: Texts, probe: Sequence[int]) -> None:
        self._matcher = matcher
        self._texts = texts
        self._probe = list(probe)
        self._behind: list[int] = []  # taken, which the matcher is told when it is needed
        self._room: int | None = None
        self._exact = False  # otherwise there may be more

    def copy(self) -> Strings:
        """A second one at the same place."""
        other = Strings(self._matcher.deep_copy(), self._texts, self._probe)
        other._behind, other._room, other._exact = list(self._behind), self._room, self._exact
        return other

    def room(self, matcher: Callable[[], Any]) -> int:
        """How many characters the string may still hold, or at least so many if that is enough for every token.

        It is 0 outside of strings. ``matcher`` gives the one of the whole vocabulary, at the place of the output.
        """
        if self._room is None:
            self._room = self._probed(matcher(), 1) and self._probed(matcher(), FAR)
            self._exact = self._room < FAR
        return self._room

    def near(self, matcher: Callable[[], Any]) -> bool:
        """Whether the output is inside a string that has no room for every token any more."""
        return 0 < self.room(matcher) < self._texts.longest

    def fits(self, token_id: int) -> bool:
        """Whether it is plain text that the string has room for; False if that is not known."""
        return 0 < self._texts.lengths[token_id] <= (self._room or 0)

    def take(self, token_id: int) -> None:
        """Take a token that may come."""
        length = self._texts.lengths[token_id]
        self._behind.append(token_id)
        self._room = self._room - length if self._room and length else None
        if self._room is not None and self._room < self._texts.longest and not self._exact:
            self._room = None

    def mask(self) -> Mask | None:
        """Which tokens may come next where ``near`` is true, uint32 [words]; None if that cannot be told."""
        behind, self._behind = self._behind, []
        ids: list[int] = []
        for token_id in behind:
            written = self._texts.in_rest(token_id)
            if written is None:
                return None
            ids += written
        if not self._matcher.consume_tokens(ids):
            return None
        words = np.empty(self._texts.upto.shape[1], np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        words |= self._texts.upto[self._room]
        return None if self._matcher.is_error() else words

    def _probed(self, matcher: Any, most: int) -> int:
        return int(matcher.validate_tokens(self._probe * most)) // len(self._probe)


def _length(token: bytes) -> int:
    """Characters of a token that is plain text, 0 for others."""
    try:
        text = token.decode()
    except UnicodeDecodeError:  # a part of a character
        return 0
    return len(text) if len(text) <= LONGEST and _TEXT.fullmatch(text) else 0


def _masks(lengths: Sequence[int], longest: int) -> Mask:
    """For each number of characters, which tokens are plain text of at most so many."""
    each = np.asarray(lengths)
    bits = np.zeros((longest + 1, 32 * (len(lengths) // 32 + 1)), bool)
    for most in range(1, longest + 1):
        bits[most, : len(each)] = (each > 0) & (each <= most)
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
