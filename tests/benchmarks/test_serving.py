"""Serving: all ways do the same work, and what they took becomes the figures that are written down."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import ernie_accel as ea
from benchmarks.end_to_end.peers.llama import UBATCH
from benchmarks.serving import arriving, llama_cpp, moments, throughput, ways
from benchmarks.serving.arguments import parse
from benchmarks.serving.plot import plot
from benchmarks.serving.publish import TITLES, table
from benchmarks.serving.throughput import Rates
from benchmarks.serving.work import VOCABULARY, Item, arrivals, computed, generated, items
from ernie_accel.backends.mock import MockOptions
from ernie_accel.testing import synthetic, tiny_config

WORK = [Item((5, 6, 7), 4), Item((8,) * 20, 9), Item((9, 9), 1), Item((4,) * 6, 12), Item((3,), 5)]
CONDITIONS = {
    "date": "2026-01-02",
    "machine": {"processor": "P", "cores": "2", "memory": "4.0 GiB", "system": "S", "python": "3.10.0"},
    "versions": {"numpy": "2.0"},
    "shape": "0.3B",
    "precision": "int8",
    "threads": 2,
    "rounds": 2,
}


@pytest.fixture
def model() -> Iterator[ea.Model]:
    with ea.Model.load(synthetic(tiny_config()), backend="mock") as model:
        yield model


def written(model: ea.Model) -> tuple[int, int]:
    counters = model.metrics().counters
    return counters["generated_tokens"], counters["requests_length"]


def test_work_is_the_same_for_the_same_seed() -> None:
    assert items("mixed", 20, 3) == items("mixed", 20, 3) != items("mixed", 20, 4)
    assert {(len(item.prompt), item.tokens) for item in items("even", 5, 0)} == {(128, 64)}
    mixed = items("mixed", 2000, 0)
    assert 16 <= min(len(item.prompt) for item in mixed) < max(len(item.prompt) for item in mixed) <= 240
    assert 8 <= min(item.tokens for item in mixed) < max(item.tokens for item in mixed) <= 256
    assert generated(mixed) / 2000 == pytest.approx(64, abs=3)
    assert sum(len(item.prompt) for item in mixed) / 2000 == pytest.approx(128, abs=4)
    assert all(3 <= token < VOCABULARY for item in mixed[:50] for token in item.prompt)


def test_arrivals_come_at_their_rate() -> None:
    times = arrivals(4000, 5.0, seed=1)
    assert times == sorted(times) == arrivals(4000, 5.0, seed=1)
    assert 4000 / times[-1] == pytest.approx(5.0, rel=0.05)


def test_tokens_that_go_through_the_model(model: ea.Model) -> None:
    ways.one_by_one(model, WORK)
    counters = model.metrics().counters
    assert computed(WORK) == counters["computed_tokens"] + counters["cached_tokens"]


def test_every_way_serves_all_of_the_work(model: ea.Model) -> None:
    times = [0.0, 0.001, 0.001, 0.02, 0.021]
    for serve in (
        lambda: ways.one_by_one(model, WORK),
        lambda: ways.in_batches(model, WORK, 2),
        lambda: ways.continuously(model, WORK, 3),
        lambda: ways.on_arrival(model, WORK, times),
        lambda: ways.first_come_first_served(model, WORK, times, 2),
    ):
        before = written(model)
        serve()
        after = written(model)
        assert (after[0] - before[0], after[1] - before[1]) == (generated(WORK), len(WORK))


def test_what_a_client_saw(model: ea.Model) -> None:
    for served in ways.on_arrival(model, WORK, [0.0] * 5):
        assert served.times == sorted(served.times)
        assert served.first > 0
        assert len(served.gaps) == len(served.times) - 1
    one = ways.Served(1.0, [1.5, 1.75, 2.75])
    assert (one.first, one.gaps) == (0.5, [0.25, 1.0])


class FakeLlama:
    """Counts through the vocabulary, and looks that positions follow one another in every sequence."""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}
        self.batches: list[int] = []
        self._ids: Sequence[int] = ()

    def clear(self) -> None:
        self.lengths.clear()

    def forget(self, sequence: int) -> None:
        del self.lengths[sequence]

    def decode(self, ids: Sequence[int], positions: Any, sequences: Any, wanted: Any) -> None:
        assert len(ids) == len(positions) == len(sequences) == len(wanted) <= UBATCH
        for position, sequence in zip(positions, sequences, strict=True):
            assert self.lengths.get(sequence, 0) == position
            self.lengths[sequence] = position + 1
        self._ids = ids
        self.batches.append(len(self.lengths))

    def best(self, row: int) -> int:
        return self._ids[row] + 1


def test_llama_cpp_is_given_requests_as_places_become_free() -> None:
    engine = FakeLlama()
    work = [*WORK, Item((5,) * 700, 3)]
    llama_cpp.Server(engine).serve(work, 2)  # type: ignore[arg-type]
    assert engine.lengths == {}
    assert max(engine.batches) == 2
    # Alone they would take a step for each token, and two for the long prompt.
    assert len(engine.batches) < generated(work) + 1
    assert len(engine.batches) >= generated(work) / 2


VALUES = {
    "serial": Rates([10.0, 20.0], [2e11, 4e11], [1e12, 1e12], [0.01, 0.03]),
    "continuous-4": Rates([30.0, 40.0], [6e11, 8e11], [1e12, 2e12], [0.02, 0.04]),
    "llama.cpp Q8_0-4": Rates([5.0, 5.0], [1e11, 1e11], [1e12, 1e12]),
    "llama.cpp BF16-4": Rates([10.0, 10.0], [2e11, 2e11], [1e12, 1e12]),
}


def throughput_result() -> dict[str, Any]:
    measured = throughput.report(parse(["throughput"]), copy.deepcopy(VALUES))
    return {**CONDITIONS, "experiment": "throughput", "name": "n", "command": "c", **measured}


def test_throughput_takes_ratios_within_rounds() -> None:
    result = throughput_result()
    row = result["ways"]["continuous-4"]
    assert result["best_llama"] == "llama.cpp BF16-4"
    assert row["by_serial"]["median"] == pytest.approx(2.5)
    assert row["by_llama"]["median"] == pytest.approx(3.5)
    assert row["peak_share"]["median"] == pytest.approx(0.5)
    text = table(result)
    assert "| continuous | 4 | 35.0 | 30.0 – 40.0 | 2.50 | 3.50 | 50% | 3.0% |" in text
    assert "| llama.cpp BF16, continuous | 4 | 10.0 | 10.0 – 10.0 | 0.75 |  | 20% |  |" in text
    assert "prompts of 128 tokens, 64 tokens after each; 2 alternating rounds" in text


def test_operations_are_those_of_the_matrices() -> None:
    config = tiny_config()
    layers, head = throughput.matrix_operations(config)
    attention = 64 * (4 * 32) * 2 + 64 * (2 * 32) * 2
    assert layers == 2 * 2 * (attention + 3 * 64 * 96)
    assert head == 2 * 128 * 64


def test_arrivals_are_told_by_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = parse(["arrivals", "--requests", "6", "--rounds", "2", "--latency-target", "0.02"])
    assert chosen.work == "mixed"

    monkeypatch.setattr(arriving, "FULL", 2)

    def load(**options: Any) -> ea.Model:
        return ea.Model.load(
            synthetic(tiny_config(vocab_size=VOCABULARY, max_position_embeddings=512)),
            backend="mock",
            **options,
        )

    measured = arriving.measure(load, chosen)
    result = {**CONDITIONS, "experiment": "arrivals", "name": "n", "command": "c", **measured}
    assert set(result["ways"]) == {"batches", "continuous", "latency-target"}
    row = result["ways"]["continuous"]
    assert row["first_token_50"]["median"] <= row["first_token_95"]["median"]
    assert len(row["first_token_95"]["values"]) == 2
    assert "continuous, `latency_target=0.02`" in table(result)
    assert "6 requests a round at 70% of" in table(result)
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    titles = {name: TITLES[name].format(**result) for name in result["ways"]}
    picture = plot(result, titles)
    assert picture == plot(result, titles)
    assert ">continuous, latency_target=0.02<" in picture


def test_moments_are_measured() -> None:
    config = tiny_config(vocab_size=VOCABULARY, max_position_embeddings=4096)
    options = ea.EngineOptions(step_tokens=128)
    mock = MockOptions(step_seconds=0.002)
    with ea.Model.load(synthetic(config), backend="mock", engine=options, backend_options=mock) as model:
        measured = moments.measure(model, parse(["moments", "--rounds", "1"]))
    result = {**CONDITIONS, "experiment": "moments", "name": "n", "command": "c", **measured}
    assert measured["cancel"]["seconds"]["median"] > 0
    text = table(result)
    assert "from `cancel()` in a prompt of 2000 tokens to the result" in text
    assert "the first 1500 seen before" in text
