from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_accel.checkpoint.quantised import ActivationGroups
from ernie_accel.errors import ArgumentError, TokenizerError
from ernie_accel.quant import Recipe, built_in_ids, ids_of_sequences, ids_of_texts
from ernie_accel.quant.text import built_in_texts
from ernie_accel.testing.tiny import tiny_config
from ernie_accel.tokenizer.load import load_tokenizer

POET = Path(__file__).parents[3] / "examples" / "poet" / "model"
RECIPE = Recipe.for_precision("int8")


def test_int4_stays_within_four_and_a_half_bits() -> None:
    recipe = Recipe.for_precision("int4")
    for cols in (256, 512, 1024, 2560, 8192):
        for kind in ("qkv", "o", "gate_up", "down"):
            exact = recipe.exact_columns(kind, cols)
            assert exact % 2 == 0
            bits = recipe.bits_of(kind) + 4 / 16 + 16 / recipe.group_of(kind) + 16 * exact / cols
            assert bits <= 4.5
    assert recipe.head_bits + 16 / recipe.head_group + 16 * recipe.exact_columns("head", 1024) / 1024 <= 6.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 24}, "24"),
        ({"group": 96}, "96"),
        ({"group": 512}, "512"),
        ({"exact_most": 3}, "exact_most=3"),
        ({"tokens": 0}, "tokens=0"),
        ({"clips": ()}, "clips"),
        ({"activations": ActivationGroups(down=128)}, "128"),
    ],
)
def test_impossible_recipes_say_so(change: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"group": 64, "down_group": 32, "head_group": 64}
    with pytest.raises(ArgumentError, match=message):
        Recipe(precision="int8", bits=8, head_bits=8, **{**sizes, **change})


def test_a_load_of_a_large_model_sees_less_text() -> None:
    recipe = Recipe.for_precision("int4")
    assert recipe.short(6_000_000) == recipe
    assert recipe.short(360_000_000).tokens == 2048 < recipe.tokens
    assert replace(recipe, tokens=100).short(360_000_000).tokens == 100


def test_unknown_precision() -> None:
    with pytest.raises(ArgumentError, match="int3"):
        Recipe.for_precision("int3")  # type: ignore[arg-type]


def test_description_says_what_was_done() -> None:
    assert Recipe.for_precision("int4").describe("8,192 tokens of the built-in text") == (
        "4-bit weights in groups of 128, 6-bit head, up to 8 exact columns a matrix, smoothed, "
        "rounding errors fed back (GPTQ), calibrated on 8,192 tokens of the built-in text."
    )
    assert "without data" in RECIPE.describe("")
    assert "exact" not in RECIPE.describe("")


def test_built_in_text_is_both_languages_by_turns() -> None:
    texts = built_in_texts()
    assert len(texts) == 240
    chinese = [any("一" <= c <= "鿿" for c in text) for text in texts]
    assert chinese[:6] == [False, True, False, True, True, True]


def test_built_in_ids_leave_out_what_the_vocabulary_spells() -> None:
    tokenizer = load_tokenizer(POET)
    assert tokenizer is not None
    ids = built_in_ids(tiny_config(vocab_size=8192), tokenizer, RECIPE)
    assert sum(map(len, ids.sequences)) == RECIPE.tokens
    assert {len(s) for s in ids.sequences} == {min(RECIPE.sequence, 256)}
    text = tokenizer.decode([i for s in ids.sequences for i in s])
    assert "BRUTUS" not in text
    assert ids.description == f"{RECIPE.tokens:,} tokens of the built-in text"


def test_random_ids_without_a_tokenizer_are_always_the_same() -> None:
    config = tiny_config()
    ids = built_in_ids(config, None, RECIPE)
    assert ids == built_in_ids(config, None, RECIPE)
    flat = [i for s in ids.sequences for i in s]
    assert len(flat) == RECIPE.tokens
    assert set(flat) == set(range(config.vocab_size))
    assert "random ids" in ids.description


def test_texts_and_ids_of_the_user() -> None:
    config = tiny_config(vocab_size=8192)
    tokenizer = load_tokenizer(POET)
    assert tokenizer is not None
    ids = ids_of_texts(["床前明月光，", "疑是地上霜。"], config, tokenizer, RECIPE)
    both = tokenizer.encode("床前明月光，", add_bos=True) + tokenizer.encode("疑是地上霜。", add_bos=True)
    assert ids.sequences == (tuple(both),)
    assert ids_of_sequences([[1, 2], [3]], config, RECIPE).sequences == ((1, 2, 3),)
    with pytest.raises(TokenizerError, match="tokenizer"):
        ids_of_texts(["a"], config, None, RECIPE)
    with pytest.raises(ArgumentError, match="empty"):
        ids_of_sequences([], config, RECIPE)


def test_sequences_fit_a_short_context() -> None:
    ids = built_in_ids(tiny_config(max_position_embeddings=50), None, RECIPE)
    assert max(map(len, ids.sequences)) == 50
