"""What may come next in one output, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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

    Attributes:
        words: Length of a mask.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary, ends: frozenset[int], name: str) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._size = size = vocabulary.end
        self._ends = ends
        self._name = name
        self.words = (size + 31) // 32

    def copy(self) -> Constraint:
        """A second one at the same place, for another alternative."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary, self._ends, self._name)

    def mask(self) -> Mask:
        """Which ids may come next, in the form of ``Select.mask``: uint32 [ceil(size / 32)].

        Raises:
            ArgumentError: None may, since the vocabulary cannot write what must come, or finding out takes too long.
        """
        words = np.zeros(self._size // 32 + 1, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return self._finished_mask(words)

    @staticmethod
    def masks(constraints: Sequence[Constraint]) -> list[Mask | ArgumentError]:
        """What ``mask`` of several constraints of one model returns or raises, worked out by several threads."""
        vocabulary = constraints[0]._vocabulary
        words = np.zeros((len(constraints), vocabulary.end // 32 + 1), np.uint32)
        places = [(constraint._matcher, row) for row, constraint in enumerate(constraints)]
        vocabulary.executor.unsafe_compute_mask_ptr(places, words.ctypes.data, words[0].nbytes, len(words))
        return [constraint._mask_or_error(row) for constraint, row in zip(constraints, words, strict=True)]

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
        if not self._matcher.consume_token(token_id):
            self._check()
            raise ArgumentError(f"{self._name}: token {token_id} is not allowed here")

    def forced(self) -> tuple[int, ...]:
        """The tokens of which one after another is all that can come next, which are taken with this; often none."""
        tokens: Sequence[int] = self._matcher.compute_ff_tokens()
        if not tokens or not self._matcher.consume_tokens(tokens):
            self._check()
            return ()
        return tuple(tokens)

    @property
    def finished(self) -> bool:
        """Whether the output is complete and nothing can follow."""
        return bool(self._matcher.is_stopped()) or self._must_end()

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
