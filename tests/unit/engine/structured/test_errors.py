"""What cannot be is refused at once, with words; nothing hangs or ends the process."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

import pytest

from ernie_accel.engine.structured import Compiler
from ernie_accel.errors import ArgumentError, MissingExtraError
from ernie_accel.types import SamplingParams
from tests.unit.engine.structured.conftest import Player, Words


def chain(length: int) -> dict[str, Any]:
    links = {
        f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}, "minItems": 1}
        for i in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"json_schema": '{"type":'}, "json_schema='{\"type\":': is no JSON"),
        ({"json_schema": "[1]"}, "must be a JSON object"),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "does not exist"),
        ({"json_schema": {"$ref": "#"}}, "has no output at all"),
        ({"json_schema": {"type": "string", "minLength": 5, "maxLength": 3}}, "Unsatisfiable"),
        ({"json_schema": {"enum": [f"{'x' * (i % 100)}{i}" for i in range(100_000)]}}, "too big"),
        ({"json_schema": '{"items":' * 5000 + "{}" + "}" * 5000}, "json_schema"),
        ({"json_schema": chain(1500)}, "levels of definitions"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": r"[^\s\S]"}, "has no output at all"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"grammar": 'start: "a'}, "lexer error"),
        ({"grammar": "foo: /a/"}, "no start rule"),
        ({"grammar": "start: a\na: a"}, "has no output at all"),
        ({"grammar": "start: <|end_of_sentence|>"}, "special token"),
        ({"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000}, "nested"),
        (
            {
                "grammar": "start: r0\n"
                + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(5000))
                + '\nr5000: "a"'
            },
            "levels",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_structures_that_cannot_be(player: Player, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)) as raised:
        player.constraint(**fields)
    assert str(raised.value).startswith(next(iter(fields)))
    assert len(str(raised.value)) < 1200


def test_deep_but_possible_definitions(player: Player) -> None:
    assert player.text(json_schema=chain(300)).startswith("[" * 10)
    rules = "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(900)) + '\nr900: "b"'
    assert player.ids(player.constraint(grammar=rules), random.Random(0), most=2000)


def test_token_that_is_not_allowed(player: Player) -> None:
    constraint = player.constraint(choices=["ab"])
    with pytest.raises(ArgumentError, match=r"choices=.*'ab'"):
        constraint.accept(player.tokenizer.encode("z")[0])


def test_vocabulary_that_cannot_write_what_must_come() -> None:
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    compiler = Compiler(Words([b"a", b"b"]), 3)
    with pytest.raises(ArgumentError, match="choices"):
        compiler.constraint(SamplingParams(choices=["é"]).structure, frozenset()).mask()


def test_output_that_becomes_too_much_ends_with_an_error(player: Player) -> None:
    """An ambiguous grammar: every step of it has more ways to go on than are followed."""
    rules = "".join(f'r{i}: "x" r{i} "{i}" | "y"\n' for i in range(950))
    choices = " | ".join(f"r{i}" for i in range(950))
    constraint = player.constraint(grammar=f"start: a\na: {choices}\n{rules}")
    token = player.tokenizer.encode("x")[0]

    def go_on() -> None:
        for _ in range(50):
            constraint.accept(token)
            constraint.mask()

    with pytest.raises(ArgumentError, match=r"grammar=.*(row|too large)"):
        go_on()


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ernie-accel\[structured\]'"):
        Compiler(Words([b"a"]), 2).constraint(SamplingParams(regex="a").structure, frozenset())


def test_a_mistake_leaves_the_compiler_in_order(player: Player) -> None:
    for _ in range(100):
        with pytest.raises(ArgumentError):
            player.constraint(regex="(")
    for i in range(100):
        assert player.text(choices=[f"word {i}"]) == f"word {i}"
