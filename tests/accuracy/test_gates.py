"""What quantised weights may cost, on trained models and text that they never saw.

The poet and fifty of its held-out poems lie in the repository. SmolLM2 is judged where
``scripts/bench accuracy smollm2`` has converted and quantised it and the texts lie beside the repository. The full
figures are in docs/accuracy.md; samples are small here, so bounds have a margin over what is measured there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

import ernie_accel as ea
from benchmarks.accuracy import smollm2, texts
from benchmarks.accuracy.candidates import CANDIDATES, directory
from ernie_accel.quant import QuantPrecision
from ernie_accel.quant.evaluate import Comparison, HasLogits, compare

POET = Path(__file__).parents[2] / "examples/poet/model"
WINDOWS, WIDTH = 4, 512

pytestmark = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")

Judge = Callable[[HasLogits], Comparison]
Make = Callable[[QuantPrecision], tuple[Path, ea.QuantizationReport]]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Quantises the poet, each precision once."""
    made: dict[str, tuple[Path, ea.QuantizationReport]] = {}

    def make(precision: QuantPrecision) -> tuple[Path, ea.QuantizationReport]:
        if precision not in made:
            target = tmp_path_factory.mktemp("poet") / precision
            made[precision] = target, ea.quantize(POET, target, precision=precision)
        return made[precision]

    return make


@pytest.fixture(scope="module")
def poet() -> Iterator[Judge]:
    with ea.Model.load(POET, precision="fp32") as reference:
        tokenizer = reference.tokenizer
        assert tokenizer is not None
        stored = json.loads((Path(__file__).parent / "poems.json").read_text(encoding="utf-8"))["poems"]
        ids = [list(tokenizer.encode(text, add_bos=True)) for text in stored]
        yield lambda model: compare(reference, model, ids)


@pytest.mark.parametrize("kv_precision", ["bf16", "int8"])
def test_int8_on_the_poet(poet: Judge, quantised: Make, kv_precision: Literal["bf16", "int8"]) -> None:
    with ea.Model.load(quantised("int8")[0], kv_precision=kv_precision) as model:
        found = poet(model)
    assert found.perplexity_change < 0.005
    assert found.kl < 0.0006
    assert found.top1 > 0.975


def test_bf16_on_the_poet(poet: Judge) -> None:
    with ea.Model.load(POET, precision="bf16") as model:
        found = poet(model)
    assert found.kl < 0.0001
    assert found.top1 > 0.99


@pytest.mark.slow
def test_int4_on_the_poet_beside_plain_4_bits(poet: Judge, quantised: Make) -> None:
    with ea.Model.load(quantised("int4")[0]) as model:
        found = poet(model)
    plain = CANDIDATES["Q4_0, 8-bit head"].load(POET)
    try:
        beside = poet(plain)
    finally:
        plain.close()
    assert found.perplexity_change < 0.03
    assert found.kl < 0.5 * beside.kl


@pytest.mark.slow
def test_bits_of_the_poet_in_int4(quantised: Make) -> None:
    report = quantised("int4")[1]
    body = ("attention", "ffn")
    weights = sum(report.parameters[name] for name in body)
    assert 8 * sum(report.bytes[name] for name in body) / weights <= 4.5
    assert report.bits_per_weight["embedding"] <= 6.6


@pytest.mark.slow
@pytest.mark.parametrize("kv_precision", ["bf16", "int8"])
def test_int8_on_smollm2(kv_precision: Literal["bf16", "int8"]) -> None:
    path = directory(smollm2.FOLDER, "int8")
    if not (path.exists() and smollm2.FOLDER.exists()):
        pytest.skip("SmolLM2 is not quantised here; 'scripts/bench accuracy smollm2' does it")
    if not (texts.DATA / texts.WIKITEXT).exists():
        pytest.skip("shared/data/wikitext-2-raw is not beside the repository")
    with (
        ea.Model.load(smollm2.FOLDER, precision="fp32") as reference,
        ea.Model.load(path, kv_precision=kv_precision) as model,
    ):
        assert reference.tokenizer is not None
        windows = texts.wikitext_windows(texts.DATA, reference.tokenizer, WINDOWS, WIDTH)
        found = compare(reference, model, windows)
    assert found.kl < 0.006
    assert found.top1 > 0.95
