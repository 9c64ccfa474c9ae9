"""What may come next in one output, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.engine.structured.strings import Strings
from ernie_accel.engine.structured.vocabulary import Vocabulary
from ernie_accel.errors import ArgumentError

__all__ = ["Constraint", "message_of"]

Mask = npt.NDArray[np.uint32]

_TOO_MUCH = ("ParserTooComplex", "LexerTooComplex")


class Constraint:
    """The state of one output. One thread at a time; ``mask`` lets others run meanwhile.

    Made by ``Compiler.constraint``.

    Args:
        matcher: llguidance's, at the place where the output is.
        vocabulary: Of the model.
        ends: Ids that end the request.
        name: What the output is held to, for messages.
        strings: The short way inside strings, where there is one; at the same place.

    Attributes:
        words: Length of a mask.
    """

    def __init__(
        self,
        matcher: Any,
        vocabulary: Vocabulary,
        ends: frozenset[int],
        name: str,
        strings: Strings | None = None,
    ) -> None:
        self._matcher = matcher
        self._behind: list[int] = []  # tokens within a string, which the matcher is told when it is needed
        self._strings = strings
        self._vocabulary = vocabulary
        self._size = size = vocabulary.end
        self._ends = ends
        self._name = name
        self.words = (size + 31) // 32

    def copy(self) -> Constraint:
        """A second one at the same place, for another alternative."""
        matcher, strings = self._caught_up().deep_copy(), self._strings
        return Constraint(matcher, self._vocabulary, self._ends, self._name, strings and strings.copy())

    def mask(self) -> Mask:
        """Which ids may come next, in the form of ``Select.mask``: uint32 [ceil(size / 32)].

        Raises:
            ArgumentError: None may, since the vocabulary cannot write what must come, or finding out takes too long.
        """
        words = self._mask_near()
        return self._finished_mask(self._matchers_mask() if words is None else words)

    @staticmethod
    def masks(constraints: Sequence[Constraint]) -> list[Mask | ArgumentError]:
        """What ``mask`` of several constraints of one model returns or raises, worked out by several threads."""
        found = [constraint._fast_mask() for constraint in constraints]
        slow = [row for row, mask in enumerate(found) if mask is None]
        if slow:
            vocabulary = constraints[0]._vocabulary
            words = np.zeros((len(slow), vocabulary.end // 32 + 1), np.uint32)
            places = [(constraints[row]._caught_up(), at) for at, row in enumerate(slow)]
            vocabulary.executor.unsafe_compute_mask_ptr(
                places, words.ctypes.data, words[0].nbytes, len(words)
            )
            for row, mask in zip(slow, words, strict=True):
                found[row] = mask
        return [
            c._mask_or_error(mask) for c, mask in zip(constraints, found, strict=True) if mask is not None
        ]

    def _fast_mask(self) -> Mask | None:
        """The mask inside a string that its length alone bounds, None elsewhere."""
        words = self._mask_near()
        return self._matchers_mask() if words is None and self._inside else words

    def _matchers_mask(self) -> Mask:
        words = np.zeros(self._size // 32 + 1, np.uint32)
        self._caught_up().unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return words

    def _mask_near(self) -> Mask | None:
        """The mask where a string will soon be full, None elsewhere."""
        strings = self._strings
        if strings is None or not strings.near(self._caught_up):
            return None
        mask = strings.mask()
        if mask is None:
            self._strings = None
        return mask

    @property
    def _inside(self) -> bool:
        """Whether the output is inside a string that has room."""
        return self._strings is not None and self._strings.room(self._caught_up) > 0

    def _caught_up(self) -> Any:
        """The matcher at the place where the output is."""
        if self._behind:
            self._matcher.consume_tokens(self._behind)
            self._behind = []
        return self._matcher

    def _mask_or_error(self, words: Mask) -> Mask | ArgumentError:
        try:
            return self._finished_mask(words)
        except ArgumentError as error:
            return error

    def _finished_mask(self, words: Mask) -> Mask:
        """The matcher's own mask with the ids that end the request in place of the matcher's end."""
        self._check()
        may_end = bool(words[self._size // 32] >> (self._size % 32) & 1)
        words[self._size // 32] &= np.uint32((1 << self._size % 32) - 1)
        if may_end:
            for end in self._ends:
                words[end // 32] |= np.uint32(1 << end % 32)
        if not words.any():
            raise ArgumentError(
                f"{self._name}: the tokenizer has no token for what must come next; allow other characters"
            )
        return words[: self.words]

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn under ``mask``; not one that ends the request.

        Raises:
            ArgumentError: It was not allowed, or finding out what it means takes too long.
        """
        strings = self._strings
        if strings is not None and strings.fits(token_id):
            self._behind.append(token_id)
        elif not self._caught_up().consume_token(token_id):
            self._check()
            raise ArgumentError(f"{self._name}: token {token_id} is not allowed here")
        if strings is not None:
            strings.take(token_id)

    def forced(self) -> tuple[int, ...]:
        """The tokens of which one after another is all that can come next, which are taken with this; often none."""
        if self._inside:  # where at least two characters are possible
            return ()
        matcher = self._caught_up()
        tokens: Sequence[int] = matcher.compute_ff_tokens()
        if not tokens or not matcher.consume_tokens(tokens):
            self._check()
            return ()
        if self._strings is not None:
            for token_id in tokens:
                self._strings.take(token_id)
        return tuple(tokens)

    @property
    def finished(self) -> bool:
        """Whether the output is complete and nothing can follow."""
        return not self._inside and (bool(self._caught_up().is_stopped()) or self._must_end())

    def _must_end(self) -> bool:
        """Without an id that can be drawn as an end, the output ends where nothing else may come."""
        if self._ends or not self._matcher.is_accepting():
            return False
        allowed = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8))
        return int(allowed.sum()) <= 1

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ArgumentError(f"{self._name}: {message_of(self._matcher)}")


def message_of(matcher: Any) -> str:
    """Say what went wrong, in a few lines."""
    reason = matcher.stop_reason()
    if reason in _TOO_MUCH:
        return f"it is too large, or takes too long to follow ({reason}); simplify it"
    if reason == "NoExtensionBias":
        return "nothing can come next"
    lines = str(matcher.get_error()).partition("<non-verbose/>")[0].strip()
    return lines if len(lines) <= 600 else lines[:597] + "..."
