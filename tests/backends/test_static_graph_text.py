"""Trained weights: every engine of the static graph writes the poem that the native engine writes in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ernie_accel import Model
from ernie_accel.backends.registry import available

POET = Path(__file__).parents[2] / "examples/poet/model"
BACKENDS = ("onnxruntime", "paddle")
PROMPTS = ["床前明月光，", "春", "山中"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_text_is_that_of_the_native_engine(backend: str) -> None:
    status = available()[backend]
    if not status.ok:
        pytest.skip(f"{status.reason} {status.next_step}")
    texts = []
    for name in ("native", backend):
        with Model.load(POET, backend=name, precision="fp32") as model:
            found = model.generate(PROMPTS, temperature=0, max_tokens=60, ignore_eos=True)
            texts.append([item.token_ids for item in found])
    assert texts[0] == texts[1]
    assert len(texts[0][0]) == 60


@pytest.mark.parametrize("backend", BACKENDS)
def test_requests_of_all_kinds_agree(backend: str) -> None:
    """Draws by the definition in NumPy, scores and embeddings come from the same logits and hidden rows."""
    status = available()[backend]
    if not status.ok:
        pytest.skip(f"{status.reason} {status.next_step}")
    found = []
    for name in ("native", backend):
        with Model.load(POET, backend=name, precision="fp32") as model:
            drawn = model.generate(PROMPTS, temperature=0.8, top_p=0.9, seed=3, max_tokens=20)
            several = model.generate("秋", n=3, temperature=1.0, seed=5, max_tokens=10)
            ids = [item.token_ids for item in [*drawn, several, *several.alternatives]]
            score = model.score("床前明月光，疑是地上霜。").perplexity
            found.append((ids, score, model.embed(["山", "水"])))
    assert found[0][0] == found[1][0]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
    assert found[1][2] == pytest.approx(found[0][2], abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_requests_that_share_beginnings_and_steps_agree(backend: str) -> None:
    """Prompts of all lengths at once, more than run together, so that sequences join, leave, fork and are kept."""
    status = available()[backend]
    if not status.ok:
        pytest.skip(f"{status.reason} {status.next_step}")
    rng = np.random.default_rng(0)
    beginning = rng.integers(300, 5000, 100)
    prompts = [
        [int(i) for i in (*beginning[: rng.integers(0, 100)], *rng.integers(300, 5000, rng.integers(1, 60)))]
        for _ in range(20)
    ]
    found = []
    for name, batch in (("native", None), (backend, 6)):
        with Model.load(POET, backend=name, precision="fp32", max_batch=batch) as model:
            made = [model.generate(prompts, temperature=0, max_tokens=12, ignore_eos=True) for _ in range(2)]
            found.append([item.token_ids for results in made for item in results])
    assert found[0] == found[1]
