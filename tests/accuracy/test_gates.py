"""What quantised weights may cost, on trained models and text that they never saw.

The poet and fifty of its held-out poems lie in the repository. SmolLM2 is judged where
``scripts/bench accuracy smollm2`` has converted it and the texts lie beside the repository. The full figures are in
docs/accuracy.md; samples are small here, so bounds have a margin over what is measured there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ernie_accel as ea
from benchmarks.accuracy import smollm2, texts
from benchmarks.accuracy.candidates import CANDIDATES
from ernie_accel.quant.evaluate import Comparison, compare

ROOT = Path(__file__).parents[2]
POET = ROOT / "examples/poet/model"
WINDOWS, WIDTH = 2, 256

pytestmark = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")

Judge = Callable[[str], Comparison]


def judge_of(path: Path, sequences: Callable[[ea.Model], list[list[int]]]) -> Iterator[Judge]:
    with ea.Model.load(path, precision="fp32") as reference:
        ids = sequences(reference)
        found: dict[str, Comparison] = {}

        def judge(name: str) -> Comparison:
            if name not in found:
                model = CANDIDATES[name].load(path)
                found[name] = compare(reference, model, ids)
                model.close()
            return found[name]

        yield judge


@pytest.fixture(scope="module")
def poet() -> Iterator[Judge]:
    def poems(model: ea.Model) -> list[list[int]]:
        assert model.tokenizer is not None
        stored = json.loads((Path(__file__).parent / "poems.json").read_text(encoding="utf-8"))["poems"]
        return [list(model.tokenizer.encode(text, add_bos=True)) for text in stored]

    yield from judge_of(POET, poems)


@pytest.fixture(scope="module")
def smol() -> Iterator[Judge]:
    if not (smollm2.FOLDER / "tokenizer.json").exists():
        pytest.skip("SmolLM2 is not converted; 'scripts/bench accuracy smollm2' does it")
    if not (texts.DATA / texts.WIKITEXT).exists():
        pytest.skip("shared/data/wikitext-2-raw is not beside the repository")

    def windows(model: ea.Model) -> list[list[int]]:
        assert model.tokenizer is not None
        return texts.wikitext_windows(texts.DATA, model.tokenizer, WINDOWS, WIDTH)

    yield from judge_of(smollm2.FOLDER, windows)


@pytest.mark.parametrize("name", ["int8", "int8, int8 cache"])
def test_int8_on_the_poet(poet: Judge, name: str) -> None:
    found = poet(name)
    assert found.perplexity_change < 0.005
    assert found.kl < 0.001
    assert found.top1 > 0.97


def test_bf16_on_the_poet(poet: Judge) -> None:
    found = poet("bf16")
    assert found.kl < 0.0001
    assert found.top1 > 0.99


def test_int4_on_the_poet_beside_plain_4_bits(poet: Judge) -> None:
    found, plain = poet("int4"), poet("Q4_0, 8-bit head")
    assert found.perplexity_change < 0.03
    assert found.kl < 0.9 * plain.kl


def test_int8_on_smollm2(smol: Judge) -> None:
    found = smol("int8")
    assert found.kl < 0.012
    assert found.top1 > 0.91
