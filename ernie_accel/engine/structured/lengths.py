"""Schemas in which a string is either free but for its length, or one of given texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["only_lengths_bound", "unwritten"]

_PLAIN = frozenset(
    {
        *("type", "title", "description", "default", "examples", "deprecated", "$schema", "$comment"),
        *("required", "minItems", "maxItems", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
_LITERAL = frozenset({"enum", "const"})
_ONE = frozenset({"items", "additionalProperties"})
_NAMED = frozenset({"properties", "$defs", "definitions"})
_UNION = frozenset({"anyOf", "oneOf"})
_NESTING = _ONE | _NAMED | _UNION | {"$ref"}


def only_lengths_bound(schema_text: str) -> bool:
    """Whether inside a string that is not one of given texts, its length alone tells what may follow, quotes aside.

    It is refused wherever that takes more than a look: a keyword that is not known to be harmless, or a union one of
    whose sides may be a given text.
    """
    found = list(_schemas(json.loads(schema_text)))
    if any(schema is None for schema in found):
        return False
    schemas = [schema for schema in found if schema is not None]
    literal = any(_LITERAL & schema.keys() for schema in schemas)
    sides = [side for schema in schemas for union in _UNION & schema.keys() for side in schema[union]]
    return not literal or all(_is_leaf(side) for side in sides)


def unwritten(schema_text: str) -> str:
    """Return a character that occurs in none of the texts of the schema, nor in the marks of JSON."""
    written = set(json.dumps(json.loads(schema_text), ensure_ascii=False))
    return next(chr(code) for code in range(0x100, 0x110000) if chr(code) not in written)


def _is_leaf(side: object) -> bool:
    return not isinstance(side, dict) or not (_LITERAL | _NESTING) & side.keys()


def _schemas(root: object) -> Iterator[dict[str, Any] | None]:
    """Every schema of the document; None where one may hold what is not looked at."""
    stack = [root]
    while stack:
        schema = stack.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict) or not schema.keys() <= _PLAIN | _LITERAL | _NESTING:
            yield None
            return
        yield schema
        if not _is_local(schema.get("$ref", "#")):
            yield None
        for name in _NESTING & schema.keys() - {"$ref"}:
            stack += _inner(name, schema[name])


def _inner(name: str, value: object) -> list[object]:
    if name in _NAMED:
        return list(value.values()) if isinstance(value, dict) else [None]
    if name in _UNION:
        return list(value) if isinstance(value, list) else [None]
    return [value]


def _is_local(ref: object) -> bool:
    """Whether a reference names the document, or a definition of it, which are all looked at."""
    if not isinstance(ref, str):
        return False
    _, _, path = ref.partition("#/")
    parts = path.split("/")
    return ref == "#" or (ref.startswith("#/") and len(parts) == 2 and parts[0] in ("$defs", "definitions"))
