"""Draws from bounds of the vocabulary head are those of the whole head on text of a trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ernie_accel as ea
from benchmarks.accuracy.nested_head import POET, disagreements
from ernie_accel.tokenizer import load_tokenizer
from ernie_accel.types import Precision

pytestmark = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("top_k", [0, 20])
def test_no_draw_differs(precision: Precision, top_k: int) -> None:
    tokenizer = load_tokenizer(POET)
    assert tokenizer is not None
    poems = json.loads((Path(__file__).parent / "poems.json").read_text(encoding="utf-8"))["poems"]
    ids = [list(tokenizer.encode(text, add_bos=True)) for text in poems]
    positions, different = disagreements(POET, precision, ids, top_k)
    assert positions > 2000
    assert different == 0
