"""From what a request asks for to its ``Constraint``; what was asked for before is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from ernie_accel.engine.structured.constraint import Constraint, message_of
from ernie_accel.engine.structured.grammar import described, grammar_of
from ernie_accel.engine.structured.lengths import only_lengths_bound, unwritten
from ernie_accel.engine.structured.strings import Strings
from ernie_accel.engine.structured.vocabulary import Pieces, Vocabulary
from ernie_accel.errors import ArgumentError
from ernie_accel.structure import Structure
from ernie_accel.tokenizer.replies import MARKS

__all__ = ["Compiler"]

KEPT = 64
"""Grammars that are kept ready; each may take some megabytes."""


class Compiler:
    """Makes constraints for one model. Any thread may use it.

    The first one makes the table of tokens, which takes about a second for a vocabulary of 100,000.

    Args:
        pieces: The model's tokenizer.
        vocab_size: Rows of its vocabulary, padding included.
    """

    def __init__(self, pieces: Pieces, vocab_size: int) -> None:
        self._pieces = pieces
        self._size = vocab_size
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[tuple[Structure, bool], tuple[Any, Strings | None]] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(
        self, structure: Structure, ends: frozenset[int], *, in_thought: bool = False
    ) -> Constraint:
        """Return a constraint at the beginning of an output.

        Args:
            structure: What the output is held to.
            ends: Ids that end the request; allowed where the structure may end.
            in_thought: The prompt ends within a thought: the structure is that of the response which follows it.

        Raises:
            MissingExtraError: llguidance is not installed.
            ArgumentError: The structure has a mistake or something that llguidance does not know, is too large, takes
                too long, or has no output at all.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._pieces, self._size)
            found = self._kept.pop((structure, in_thought), None)
            if found is None:
                grammar = grammar_of(structure, self._special_marks() if in_thought else None)
                matcher = _checked_matcher(self._vocabulary, structure, grammar)
                found = matcher, None if in_thought else _strings(self._vocabulary, structure, grammar)
            self._kept[structure, in_thought] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            matcher, strings = found
            name = described(structure)
            return Constraint(matcher.deep_copy(), self._vocabulary, ends, name, strings and strings.copy())

    def _special_marks(self) -> dict[str, int]:
        ids = {mark: self._pieces.id_of(mark) for mark in MARKS}
        return {mark: i for mark, i in ids.items() if i is not None and i in self._pieces.special_ids}


def _checked_matcher(vocabulary: Vocabulary, structure: Structure, grammar: str) -> Any:
    matcher = _matcher(vocabulary.tokenizer, grammar)
    if matcher.is_error():
        raise ArgumentError(f"{described(structure)}: {message_of(matcher)}")
    # Limits of a step show with its first mask, and so does a structure without any output.
    if not any(matcher.compute_bitmask()) or matcher.is_error():
        raise ArgumentError(f"{described(structure)}: has no output at all: {message_of(matcher)}")
    return matcher


def _strings(vocabulary: Vocabulary, structure: Structure, grammar: str) -> Strings | None:
    """The short way to masks, where the schema allows it and the vocabulary has a token for each byte."""
    schema = structure.json_schema
    if schema is None or not only_lengths_bound(schema):
        return None
    probe = vocabulary.texts.spelled(unwritten(schema).encode())
    if probe is None:
        return None
    return Strings(_matcher(vocabulary.rest_tokenizer, grammar), vocabulary.texts, probe)


def _matcher(tokenizer: Any, grammar: str) -> Any:
    import llguidance

    limits = llguidance.LLParserLimits(verbose_errors=False)
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
