"""Near the end of a bounded string masks come from the lengths of tokens; they must be those of the whole matcher."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from ernie_accel.engine.structured import Compiler, Constraint
from ernie_accel.engine.structured.lengths import only_lengths_bound, unwritten
from ernie_accel.engine.structured.strings import Texts
from ernie_accel.types import SamplingParams
from tests.unit.engine.structured.conftest import Player, Words, allowed

SHORT = {"type": "string", "maxLength": 5}
LITERAL = {"enum": ["abcdefghijkl", "ab", 3]}


def random_schema(rng: random.Random, depth: int = 0, *, union: bool = False) -> dict[str, Any]:
    """Strings with bounds in all the places where they may stand beside given texts."""
    kinds = ["string", "string", "number", "array", "union", *([] if union else ["literal", "object"])]
    kind = rng.choice(kinds) if depth < 3 else "string"
    if kind == "literal":
        return rng.choice([LITERAL, {"const": "bright moonlight"}, {"type": ["boolean", "null"]}])
    if kind == "number":
        return {"type": "integer", "minimum": -5, "maximum": 500}
    if kind == "array":
        items = random_schema(rng, depth + 1, union=union)
        return {"type": "array", "items": items, "maxItems": rng.randint(0, 3)}
    if kind == "union":
        return {"anyOf": [{"type": "string", "maxLength": rng.randint(0, 40)} for _ in range(2)]}
    if kind == "object":
        names = rng.sample(["a", "ab", "name", "名字"], rng.randint(0, 3))
        more = rng.choice([False, True, {"type": "string", "maxLength": 4}])
        inner = {name: random_schema(rng, depth + 1) for name in names}
        return {"type": "object", "properties": inner, "required": names[:1], "additionalProperties": more}
    least = rng.choice([0, 0, 1, 3])
    return {"type": "string", "minLength": least, "maxLength": least + rng.choice([0, 1, 2, 5, 9, 31, 33])}


def whole(constraint: Constraint) -> Constraint:
    """A copy that asks its matcher everything."""
    copy = constraint.copy()
    copy._strings = None
    return copy


def follow(constraint: Constraint, rng: random.Random, ends: frozenset[int]) -> int:
    """Draw one output; compare every answer with the matcher's; count masks that were worked out from lengths."""
    other, near = whole(constraint), 0
    for _ in range(60):
        assert constraint.forced() == other.forced()
        assert constraint.finished == other.finished
        if constraint.finished:
            break
        strings = constraint._strings
        near += strings is not None and strings.near(constraint._caught_up)
        mask = constraint.mask()
        np.testing.assert_array_equal(mask, other.mask())
        token = rng.choice(allowed(constraint))
        if token in ends:
            break
        constraint.accept(token)
        other.accept(token)
    return near


def test_masks_are_the_matchers(player: Player) -> None:
    near = 0
    for seed in range(150):
        rng = random.Random(seed)
        constraint = player.constraint(json_schema=random_schema(rng))
        near += follow(constraint.copy(), rng, player.ends)
    assert near > 300


def test_masks_of_several_are_those_of_each(player: Player) -> None:
    constraint = player.constraint(json_schema={"type": "array", "items": SHORT})
    rng, several = random.Random(0), []
    for length in range(12):
        one = constraint.copy()
        for _ in range(length):
            one.forced()
            token = rng.choice(allowed(one))
            if token in player.ends:
                break
            one.accept(token)
        several.append(one)
    expected = [whole(one).mask() for one in several]
    for mask, right in zip(Constraint.masks(several), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), right)


def test_copies_within_a_string_go_their_own_way(player: Player) -> None:
    first = player.constraint(json_schema=SHORT)
    first.forced()
    letter = player.tokenizer.encode("b")[-1]
    first.accept(letter)
    second = first.copy()
    second.accept(letter)
    np.testing.assert_array_equal(first.mask(), whole(first).mask())
    np.testing.assert_array_equal(second.mask(), whole(second).mask())
    assert first.mask().tolist() != second.mask().tolist()


@pytest.mark.parametrize(
    "schema",
    [
        SHORT,
        {},
        {"properties": {"pattern": SHORT, "kind": LITERAL}, "additionalProperties": SHORT},
        {"anyOf": [SHORT, {"type": "null"}], "$defs": {"kind": LITERAL}},
        {"oneOf": [{"type": "array", "items": SHORT}, {"$ref": "#/$defs/text"}], "$defs": {"text": SHORT}},
        {"type": "array", "items": {"$ref": "#"}},
    ],
)
def test_schemas_whose_strings_only_their_length_binds(schema: dict[str, Any]) -> None:
    assert only_lengths_bound(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^b+$", "maxLength": 5},
        {"type": "string", "format": "date"},
        {"items": {"properties": {"a": {"pattern": "b"}}}},
        {"propertyNames": SHORT},
        {"patternProperties": {"a": SHORT}},
        {"allOf": [SHORT, {"pattern": "b"}]},
        {"anyOf": [SHORT, LITERAL]},
        {"anyOf": [SHORT, {"$ref": "#/$defs/kind"}], "$defs": {"kind": LITERAL}},
        {"anyOf": [{"items": SHORT}, {"items": LITERAL}]},
        {"$ref": "#/default", "default": {"pattern": "b"}},
        {"$ref": "https://example.org/schema"},
        {"x-guidance": {"whitespace_flexible": True}},
        {"anyOf": [SHORT, {"enum": ["abcdefghijkl"]}], "maxLength": 9},
    ],
)
def test_schemas_that_are_left_to_the_matcher(schema: dict[str, Any]) -> None:
    assert not only_lengths_bound(json.dumps(schema))


def test_given_text_beside_a_bounded_string(player: Player) -> None:
    """Where both may stand, a token of the text that is longer than the bound is still allowed."""
    pieces = [player.tokenizer.token_bytes(i) for i in range(player.tokenizer.vocab_size)]
    texts = Texts(pieces)
    longest = texts.lengths.index(texts.longest)
    schema = {
        "anyOf": [
            {"type": "string", "maxLength": texts.longest - 1},
            {"const": pieces[longest].decode()},
        ]
    }
    constraint = player.constraint(json_schema=schema)
    constraint.forced()
    assert longest in allowed(constraint)
    constraint.accept(longest)
    constraint.forced()
    assert constraint.finished


def test_probe_is_in_none_of_the_texts() -> None:
    assert unwritten(json.dumps({"const": "\u0100\u0101"})) == "\u0102"


def test_vocabulary_without_bytes_has_no_short_way() -> None:
    words = Words([b'"', b"ab", b"abc", b"a", b"b"])
    structure = SamplingParams(json_schema=SHORT).structure
    constraint = Compiler(words, 6).constraint(structure, frozenset())
    assert constraint._strings is None
    constraint.forced()
    assert constraint.mask().tolist() == [0b111110]


def test_texts_by_length() -> None:
    texts = Texts([b"", b"a", b"bcd", "é明".encode(), b'x"', b"\xe6", b"\n", b"a"])
    assert texts.lengths == [0, 1, 3, 2, 0, 0, 0, 1]
    assert texts.upto.tolist() == [[0], [0b10000010], [0b10001010], [0b10001110]]
    assert texts.rest == [b"", b"a", b"", b"", b'x"', b"\xe6", b"\n", b""]
    assert texts.in_rest(7) == [1]
    assert texts.in_rest(2) is None
