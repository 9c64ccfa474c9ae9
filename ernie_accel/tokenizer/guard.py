"""Keeps apart, in a rendered conversation, what the template wrote and what the messages hold.

Before rendering, the characters that begin or end special tokens ("<" and ">", for ERNIE) are replaced in everything
that the caller gave by private characters that occur nowhere else; so whatever special token the rendered text holds
is the template's own, even if the template cuts, joins or trims messages. Afterwards the characters are put back.
One character stands for one, so slices, lengths and trimming are what they would have been.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, SupportsIndex

from ernie_accel.errors import ArgumentError

__all__ = ["Guard", "ascii_only", "strings_of"]

# Private use first; then planes that Unicode has not assigned, for texts that use all of those.
_PRIVATE = (
    range(0xE000, 0xF900),
    range(0xF0000, 0xFFFFE),
    range(0x100000, 0x10FFFE),
    range(0x40000, 0xDFFFE),
)
_NOT_ASCII = re.compile("[^\x00-\x7f\ue000-\uf8ff\U00040000-\U0010ffff]")


class Guard:
    """Hides the edges of special tokens in texts, and shows them again."""

    def __init__(self, specials: Iterable[str], occurring: Iterable[str]) -> None:
        """Choose private characters that none of the ``occurring`` texts holds."""
        edges = sorted({edge for text in specials for edge in (text[0], text[-1])})
        taken = set().union(*occurring)
        free = list(islice((c for c in map(chr, chain(*_PRIVATE)) if c not in taken), len(edges)))
        if len(free) < len(edges):
            raise ArgumentError(
                "messages use every private character of Unicode, so none is left to mark their text"
            )
        self._hidden = {ord(edge): private for edge, private in zip(edges, free, strict=True)}
        self._shown = {ord(private): edge for edge, private in zip(edges, free, strict=True)}

    @property
    def hidden(self) -> Iterator[str]:
        """The private characters in use."""
        return map(chr, self._shown)

    def hide(self, value: Any) -> Any:
        """Copy a JSON-like value with the edges hidden in every string of it.

        Keys are included, but for those that a template looks up by name.
        """
        if isinstance(value, str):
            return GuardedText(value.translate(self._hidden), self._hidden)
        if isinstance(value, dict):
            return {self._hide_key(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        return value

    def _hide_key(self, key: str) -> str:
        return key if key.isidentifier() else key.translate(self._hidden)

    def show(self, text: str) -> str:
        """Put the edges back."""
        return text.translate(self._shown)


def ascii_only(json_text: str) -> str:
    """Escape what is not ASCII in a JSON text, but for the characters that may stand for hidden ones."""
    return _NOT_ASCII.sub(lambda match: json.dumps(match.group())[1:-1], json_text)


def strings_of(value: object) -> Iterator[str]:
    """Give every string in a JSON-like value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings_of(key)
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)


class GuardedText(str):
    """A text with hidden edges that a template can still search: ``"</think>" in content`` finds what it would have.

    Whatever a method looks for is hidden the same way first; pieces of a guarded text are guarded.
    """

    _table: Mapping[int, str]

    def __new__(cls, text: str, table: Mapping[int, str] | None = None) -> GuardedText:
        self = super().__new__(cls, text)
        self._table = table or {}
        return self

    def _term(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._term(item) for item in value)
        return str.translate(value, self._table) if isinstance(value, str) else value

    def _pieces(self, value: Any) -> Any:
        if isinstance(value, str):
            return GuardedText(value, self._table)
        return type(value)(map(self._pieces, value)) if isinstance(value, (list, tuple)) else value

    def __str__(self) -> str:
        return self

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, self._term(other)) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, key: object) -> bool:
        return str.__contains__(self, self._term(key))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return self._pieces(str.__getitem__(self, key))  # type: ignore[no-any-return]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.split(self, self._term(sep), maxsplit))  # type: ignore[no-any-return]

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.rsplit(self, self._term(sep), maxsplit))  # type: ignore[no-any-return]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return self._pieces(str.replace(self, self._term(old), new, count))  # type: ignore[no-any-return]


def _forwarded(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def call(self: GuardedText, *arguments: Any) -> Any:
        return self._pieces(method(self, *map(self._term, arguments)))

    call.__name__ = name
    return call


for _name in (
    *("startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
    *("partition", "rpartition", "removeprefix", "removesuffix", "strip", "lstrip", "rstrip"),
    *("lower", "upper", "title", "capitalize", "casefold", "splitlines"),
):
    setattr(GuardedText, _name, _forwarded(_name))
