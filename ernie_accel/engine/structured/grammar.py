"""A ``Structure`` as the grammar text that llguidance reads, refused where reading it could not end well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ernie_accel.errors import ArgumentError
from ernie_accel.structure import Structure

__all__ = ["JSON_LAYOUT", "described", "grammar_of"]

JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as ``json.dumps`` writes it. Free white space would let a model go on with it for ever, and forces nothing."""

MOST_LEVELS = 1000
"""Definitions that may nest in one another: llguidance reads them recursively, and has no stack left at about 2,000."""

_DEFINITION = re.compile(r"^[ \t]*[?!]?[A-Za-z_][\w.\-]*[^\n:\"'/]*(?:\[[^\n]*?\])?[ \t]*:", re.MULTILINE)


def described(structure: Structure) -> str:
    """Name the field and begin its value, for messages."""
    for name in ("json_schema", "regex", "grammar", "choices"):
        value = getattr(structure, name)
        if value is not None:
            text = value if isinstance(value, str) else repr(list(value))
            return f"{name}={_shortened(text)}"
    raise AssertionError("described is asked about a structure only")


def grammar_of(structure: Structure, thought: Mapping[str, int] | None = None) -> str:
    """Return the grammar in llguidance's own form, JSON text.

    Args:
        structure: What the output is held to.
        thought: Given if the output begins within a thought, so that what has the structure is the response after it:
            ids of those marks of a turn that are special tokens.

    Raises:
        ArgumentError: It is no JSON, or has so many definitions that reading it could overflow the stack.
    """
    body = _body(structure)
    around = [] if thought is None else [{"lark_grammar": _around_response(thought)}]
    return json.dumps({"grammars": [*around, {"name": "body", **body}]}, ensure_ascii=False)


def _around_response(special: Mapping[str, int]) -> str:
    """The turn of a Thinking model, from within the thought that its prompt begins."""

    def mark(text: str) -> str:
        return f"<[{special[text]}]>" if text in special else _literal(text)

    end = mark("</think>")
    thought = f"thought: TEXT {end}" if "</think>" in special else f"thought[suffix={end}]: TEXT"
    opening, closing = mark("<response>"), mark("</response>")
    start = rf'start: thought "\n\n" {opening} "\n" @body "\n" {closing} "\n"'
    return f"{start}\n{thought}\nTEXT: /(.|\\n)*/\n"


def _body(structure: Structure) -> dict[str, Any]:
    if structure.json_schema is not None:
        return {"json_schema": _schema(structure.json_schema)}
    if structure.regex is not None:
        return {"lark_grammar": f"start: TEXT\nTEXT: {_regex_literal(structure.regex)}\n"}
    if structure.grammar is not None:
        _check_levels("grammar", _lark_levels(structure.grammar))
        return {"lark_grammar": structure.grammar}
    assert structure.choices is not None, "a structure has one of four fields"
    return {"lark_grammar": f"start: TEXT\nTEXT: {' | '.join(map(_literal, structure.choices))}\n"}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex_literal(regex: str) -> str:
    """The expression between slashes, with those inside it escaped."""
    escaped = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], regex, flags=re.DOTALL)
    return "/" + escaped.replace("\n", r"\n") + "/"


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"json_schema={_shortened(text)}: is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ArgumentError(f"json_schema={_shortened(text)}: must be a JSON object")
    _check_levels("json_schema", _schema_levels(schema))
    own = schema.get("x-guidance")
    return {**schema, "x-guidance": {**JSON_LAYOUT, **(own if isinstance(own, dict) else {})}}


def _check_levels(name: str, levels: int) -> None:
    if levels > MOST_LEVELS:
        raise ArgumentError(
            f"{name}: has {levels} levels of definitions, one within another or referring to one another; at most "
            f"{MOST_LEVELS} are supported"
        )


def _lark_levels(text: str) -> int:
    return len(_DEFINITION.findall(text)) + text.count('"$ref"')


def _schema_levels(schema: dict[str, Any]) -> int:
    """An upper bound of the recursion: the depth of the document and of everything that a reference names."""
    targets = {ref for ref in _references(schema) if ref.startswith("#")}
    return _depth(schema) + sum(_depth(_resolved(schema, target)) for target in targets)


def _references(schema: object) -> Iterator[str]:
    for value, _ in _walk(schema):
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            yield value["$ref"]


def _depth(value: object) -> int:
    return max(depth for _, depth in _walk(value))


def _walk(value: object) -> Iterator[tuple[object, int]]:
    """Every value inside, with its depth; without recursion."""
    stack = [(value, 1)]
    while stack:
        found, depth = stack.pop()
        yield found, depth
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        stack += [(item, depth + 1) for item in inner]


def _resolved(schema: object, pointer: str) -> object:
    for part in pointer.lstrip("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        schema = schema.get(key) if isinstance(schema, dict) else None
    return schema


def _shortened(text: str, most: int = 200) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
