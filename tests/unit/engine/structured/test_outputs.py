"""Every output has the structure that was asked for, whatever is drawn."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_accel.engine.structured import Compiler
from ernie_accel.testing.tokenizer import SAMPLE_TEXT, train_tokenizer
from ernie_accel.tokenizer import Tokenizer
from ernie_accel.tokenizer.builtin import THINKING
from ernie_accel.tokenizer.replies import MARKS
from ernie_accel.types import SamplingParams
from tests.unit.engine.structured.conftest import Player, Words, allowed, loaded
from tests.unit.engine.structured.schemas import check, random_object, random_schema


@pytest.mark.parametrize("seed", range(0, 300, 10))
def test_random_schemas(player: Player, seed: int) -> None:
    for number in range(seed, seed + 10):
        rng = random.Random(number)
        schema = random_object(rng) if number % 3 == 0 else random_schema(rng)
        check(player.text(number, json_schema=schema), schema)


def test_json_is_written_as_json_dumps_writes_it(player: Player) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"const": [1, "床前"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    text = player.text(json_schema=schema)
    assert text == json.dumps(json.loads(text), ensure_ascii=False)
    compact = {**schema, "x-guidance": {"item_separator": ",", "key_separator": ":"}}
    text = player.text(json_schema=compact)
    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-c]{3}/[0-9]{2}",
        r"a\/b/c",
        "line\none",
        r"[床前明é😀]{10}",
        r"(ja|nein), [A-Z][a-z]{2,5}\.",
        r"\\\"'`/\[",
    ],
)
def test_expressions(player: Player, pattern: str) -> None:
    for seed in range(10):
        assert re.fullmatch(pattern.replace(r"\/", "/"), player.text(seed, regex=pattern))


def test_choices_that_begin_one_another(player: Player) -> None:
    choices = ["ja", "jawohl", "床前", "床前明月光", 'a "b" \\ c\n', "é☃"]
    seen = {player.text(seed, choices=choices) for seed in range(200)}
    assert seen == set(choices)


def test_grammar(player: Player) -> None:
    grammar = """
start: item ("," " " item)*
item: NAME "=" value
value: NUMBER | %json {"type": "boolean"}
NAME: /[a-z]{1,4}/
NUMBER: /[0-9]{1,3}/
"""
    for seed in range(20):
        text = player.text(seed, grammar=grammar)
        assert re.fullmatch(
            r"[a-z]{1,4}=([0-9]{1,3}|true|false)(, [a-z]{1,4}=([0-9]{1,3}|true|false))*", text
        )


def test_characters_outside_the_vocabulary_are_written_in_bytes(player: Player) -> None:
    word = "\U0001f608鿿"
    assert player.text(choices=[word]) == word
    ids = player.ids(player.constraint(regex=f"[{word}]{{4}}"), random.Random(1))
    assert len(ids) > 4
    assert set(player.tokenizer.decode(ids)) <= set(word)


@pytest.mark.parametrize("kind", ["llama", "byte level"])
def test_tokenizer_json(
    kind: str, tmp_path: Path, player_of: Callable[[Tokenizer], Player], request: pytest.FixtureRequest
) -> None:
    player = player_of(_from_json(tmp_path, kind))
    schema: dict[str, Any] = {
        "type": "array",
        "items": {"enum": ["床前 明月光", "é😀"]},
        "minItems": 2,
        "maxItems": 3,
    }
    for seed in range(5):
        check(player.text(seed, json_schema=schema), schema)


def _from_json(directory: Path, kind: str) -> Tokenizer:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'hub'")
    if kind == "llama":
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
        special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    else:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        special = ["<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet() if kind != "llama" else [],
    )
    tokenizer.train_from_iterator(['hello [床前] 明月光, a, b "c"' + string.printable], trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    (directory / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return loaded(directory)


def test_only_text_and_ends_are_ever_allowed(player: Player) -> None:
    """Special tokens and padding rows are no text; an end is allowed where the output may end, and nowhere else."""
    constraint = player.constraint(regex="(.|\n)*")
    tokenizer = player.tokenizer
    text = {i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids}
    assert player.ends <= set(allowed(constraint)) <= text | player.ends
    assert len(allowed(constraint)) > 300
    must_go_on = player.constraint(regex="(.|\n){3,}")
    assert not player.ends & set(allowed(must_go_on))
    other = player.constraint(regex="a*", ends=frozenset({1, 639}))
    assert {1, 639} <= set(allowed(other))


@pytest.mark.parametrize("rows", [513, 544, 575, 576])
def test_masks_have_a_bit_for_each_row(player: Player, rows: int) -> None:
    constraint = Compiler(player.tokenizer, rows).constraint(
        SamplingParams(regex="a*").structure, frozenset({2, rows - 1})
    )
    assert constraint.mask().shape == ((rows + 31) // 32,)
    assert constraint.mask().dtype == "uint32"
    assert {2, rows - 1} <= set(allowed(constraint)) <= set(range(rows))


def test_rows_may_be_fewer_than_the_tokenizer_has(player: Player) -> None:
    compiler = Compiler(player.tokenizer, 300)
    constraint = compiler.constraint(SamplingParams(choices=["the moon"]).structure, player.ends)
    ids = player.ids(constraint, random.Random(0))
    assert player.tokenizer.decode(ids) == "the moon"
    assert max(ids) < 300


def test_forced_tokens_are_the_tokenizers_own(player: Player) -> None:
    text = "Assistant: 床前明月光"
    constraint = player.constraint(choices=[text + "a", text + "b"])
    forced = constraint.forced()
    whole = player.tokenizer.encode(text + "a")
    assert len(forced) >= 3
    assert list(forced) == whole[: len(forced)]
    assert constraint.forced() == ()
    assert not constraint.finished


def test_what_can_only_be_one_text_is_all_forced(player: Player) -> None:
    constraint = player.constraint(choices=["床前明月光"])
    assert player.tokenizer.decode(constraint.forced()) == "床前明月光"
    assert constraint.finished


def test_copies_go_their_own_way(player: Player) -> None:
    first = player.constraint(choices=["ab", "ba"])
    second = first.copy()
    a, b = (player.tokenizer.encode(letter)[0] for letter in "ab")
    first.accept(a)
    second.accept(b)
    assert player.tokenizer.decode(first.forced()) == "b"
    assert player.tokenizer.decode(second.forced()) == "a"


def test_tokenizer_that_changes_the_text_forces_the_longest_pieces() -> None:
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    words = Words([b"a", b"ab", b"abc", b"\xe5\xba", b"\x8a"])
    constraint = Compiler(words, 8).constraint(SamplingParams(choices=["abcab床"]).structure, frozenset())
    ids = [*constraint.forced()]
    while not constraint.finished:
        token = max(allowed(constraint), key=lambda i: len(words.pieces[i]))
        constraint.accept(token)
        ids += [token, *constraint.forced()]
    assert b"".join(words.pieces[i] for i in ids).decode() == "abcab床"


@pytest.mark.parametrize("special", [True, False])
def test_structure_after_a_thought(
    special: bool, tmp_path: Path, player_of: Callable[[Tokenizer], Player]
) -> None:
    """Marks may be special tokens, which no other text can hold, or text in ordinary pieces."""
    marks = {mark: 512 + i for i, mark in enumerate(sorted(MARKS))} if special else {}
    directory = train_tokenizer(SAMPLE_TEXT, tmp_path, chat_template=THINKING, added_tokens=marks)
    player = player_of(loaded(directory))
    tokenizer = player.tokenizer
    constraint = player.compiler.constraint(
        SamplingParams(choices=["yes", "no"]).structure, player.ends, in_thought=True
    )
    thought = tokenizer.encode("Hm, <b>\nwell.") + tokenizer.encode("</think>", parse_special=True)
    for token in thought:
        assert token in allowed(constraint)
        constraint.accept(token)
    ids = thought + player.ids(constraint, random.Random(3))
    reply = tokenizer.parse_reply(ids)
    assert reply.thinking == "Hm, <b>\nwell."
    assert reply.content in ("yes", "no")
    assert constraint.finished
