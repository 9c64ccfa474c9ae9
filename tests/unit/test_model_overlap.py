"""Masks worked out beside the step: what comes is what came with masks before it, and nothing is left behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.engine.stepping import Stepper
from ernie_accel.engine.structured import Guide
from ernie_accel.errors import ArgumentError, BackendError, ClosedError
from tests.unit.engine.structured.schemas import random_object, random_schema

pytest.importorskip("llguidance", reason="needs the extra 'structured'")

BESIDE = Stepper._run_beside
PREPARE = Guide.prepare


@pytest.fixture(params=[1, 2])
def model(
    checkpoint_directory: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ea.Model]:
    """On one thread or two, with every mask beside a step, whatever the machine has left."""
    monkeypatch.setattr("ernie_accel.engine.stepping.available_threads", lambda: 3)
    monkeypatch.setattr("ernie_accel.engine.stepping.LEAST_MASKS", 1)
    if not ea.backends()["native"].ok:
        pytest.skip("native cannot run here")
    options: dict[str, Any] = {"backend": "native", "precision": "int8", "threads": request.param}
    with ea.Model.load(checkpoint_directory, **options) as loaded:
        yield loaded


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of the steps that ran beside their masks."""
    sizes: list[int] = []

    def run_beside(stepper: Stepper, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch))
        return BESIDE(stepper, batch, *rest)

    monkeypatch.setattr(Stepper, "_run_beside", run_beside)
    return sizes


def masks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Stepper, "_run_beside", lambda stepper, batch, waiting, _: stepper._run_after(batch, waiting)
    )


def drawn(model: ea.Model, seeds: range, at_a_time: int) -> list[tuple[int, ...]]:
    """Tokens of requests with all kinds of structures and settings, and of some without."""
    found: list[tuple[int, ...]] = []
    for first in range(seeds.start, seeds.stop, at_a_time):
        handles = [_submit(model, s) for s in range(first, min(first + at_a_time, seeds.stop))]
        found += [handle.result().token_ids for handle in handles]
    return found


def _submit(model: ea.Model, seed: int) -> Any:
    rng = random.Random(seed)
    fields: dict[str, Any] = {
        "temperature": rng.choice((0.0, 0.7, 1.0)),
        "top_k": rng.choice((0, 5)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.3)),
        "logprobs": rng.choice((0, 0, 2)),
        "max_tokens": rng.choice((8, 60)),
        "seed": seed,
    }
    if seed % 5 != 4:
        fields["json_schema"] = random_object(rng) if seed % 3 == 0 else random_schema(rng)
    return model.submit("x" * rng.randint(1, 30), **fields)


@pytest.mark.parametrize("at_a_time", [1, 3, 16])
def test_the_same_tokens_with_masks_before_and_beside(
    model: ea.Model, beside: list[int], monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    asked = range(32)
    with_overlap = drawn(model, asked, at_a_time)
    assert beside
    assert (max(beside) > 1) == (at_a_time > 1)
    masks_first(monkeypatch)
    assert drawn(model, asked, at_a_time) == with_overlap
    assert drawn(model, asked, 1) == with_overlap


def test_masks_are_worked_out_while_the_step_runs(model: ea.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = model._engine._runner  # type: ignore[attr-defined]
    seen: list[bool] = []

    def mask(guide: Guide) -> Any:
        if guide.waits:
            with pytest.raises(ArgumentError, match="under way"):
                runner.capacity()
            seen.append(True)
        return MASK(guide)

    MASK = Guide.mask
    monkeypatch.setattr(Guide, "mask", mask)
    model.generate("x", regex="[ab]{20}", seed=1)
    assert len(seen) >= 10


@pytest.mark.parametrize("error", [ArgumentError("no token for it"), RuntimeError("of the grammar engine")])
def test_a_mask_that_fails_ends_its_request_alone(
    model: ea.Model, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    alone = [model.generate("x", regex="[ab]{20}", seed=seed).token_ids for seed in range(3)]
    failing: list[Guide] = []

    def mask(guide: Guide) -> Any:
        if guide in failing:
            raise error
        return MASK(guide)

    def take(guide: Guide, token_id: int) -> Any:
        if "[cd]" in guide._constraint._name:
            failing.append(guide)
        return TAKE(guide, token_id)

    MASK, TAKE = Guide.mask, Guide.take
    monkeypatch.setattr(Guide, "mask", mask)
    monkeypatch.setattr(Guide, "take", take)
    handles = [model.submit("x", regex="[ab]{20}", seed=seed) for seed in range(3)]
    lost = model.submit("x", regex="[cd]{20}", seed=1)
    with pytest.raises((ArgumentError, BackendError), match=str(error)):
        lost.result()
    assert failing
    assert [handle.result().token_ids for handle in handles] == alone
    assert model.generate("x", regex="[ab]{20}", seed=0).token_ids == alone[0]
    model.clear_cache()
    assert model.metrics().gauges["kv_used_tokens"] == 0


class Held:
    """Holds the engine's thread at a mask, which it works out beside a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._left = number
        monkeypatch.setattr(Guide, "prepare", self._prepare)

    def _prepare(self, guides: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.go_on.wait(60)
        PREPARE(guides)


def _meanwhile(held: Held, call: Callable[[], object]) -> threading.Thread:
    assert held.reached.wait(60)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(0.05)
    held.go_on.set()
    return thread


def test_cancel_beside_a_step(model: ea.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.generate("x", regex="[ab]{40}", seed=3)
    held = Held(monkeypatch, 5)
    handle = model.submit("x", regex="[ab]{40}", seed=3)
    _meanwhile(held, handle.cancel).join(60)
    done = handle.result()
    assert done.finish_reason == "cancelled"
    assert 0 < len(done.token_ids) < len(whole.token_ids)
    assert done.token_ids == whole.token_ids[: len(done.token_ids)]
    model.clear_cache()
    assert model.metrics().gauges["kv_used_tokens"] == 0


def test_close_beside_a_step(model: ea.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch, 5)
    handle = model.submit("x", regex="[ab]{40}", seed=3)
    closing = _meanwhile(held, model.close)
    closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(ClosedError):
        handle.result()
