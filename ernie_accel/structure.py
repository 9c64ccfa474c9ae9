"""What an output can be held to, as a caller gives it: a JSON schema, a regular expression, a grammar, or choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ernie_accel.errors import ArgumentError

__all__ = ["Structure"]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The four ways to ask for a structure, checked as far as types go; at most one is not None.

    Attributes:
        json_schema: The text of a JSON object.
        regex: A regular expression for the whole output.
        grammar: A Lark grammar with a rule ``start``.
        choices: The texts of which the output is one.
    """

    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    choices: tuple[str, ...] | None = None

    @classmethod
    def checked(cls, json_schema: object, regex: object, grammar: object, choices: object) -> Structure:
        """Check what the caller gave, and copy it so that nothing can change it.

        Raises:
            ArgumentError: A value is of the wrong kind, or more than one is given.
        """
        names = ("json_schema", "regex", "grammar", "choices")
        values = (json_schema, regex, grammar, choices)
        given = [name for name, value in zip(names, values, strict=True) if value is not None]
        if len(given) > 1:
            raise ArgumentError(f"{' and '.join(given)}: an output has one structure; give one of them")
        return cls(
            json_schema=_schema(json_schema),
            regex=_text("regex", regex, "a regular expression, as a string that is not empty"),
            grammar=_text("grammar", grammar, "a Lark grammar, as a string that is not empty"),
            choices=_choices(choices),
        )

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.json_schema, self.regex, self.grammar, self.choices))


def _schema(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _text("json_schema", value, "a JSON schema, as a mapping or as the text of a JSON object")
    if not isinstance(value, Mapping):
        raise ArgumentError(
            f"json_schema={value!r}: must be a JSON schema, as a mapping or as the text of a JSON object"
        )
    try:
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"json_schema={value!r}: must be something that JSON can hold: {error}") from None
    return text


def _plain(value: object) -> Any:
    """Mappings and sequences of any kind as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [_plain(item) for item in value]
    return value


def _text(name: str, value: object, allowed: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ArgumentError(f"{name}={value!r}: must be {allowed}")
    return _characters(name, value)


def _characters(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{name}={value!r}: must be characters, not halves of surrogate pairs") from None
    return value


def _choices(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    texts = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ArgumentError(f"choices={value!r}: must be a list of strings, none of them empty")
    return tuple(_characters("choices", text) for text in texts)
