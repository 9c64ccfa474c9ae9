"""Tokens a second of each way to serve, and how much of the processors' arithmetic that uses."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import ernie_accel as ea
from ernie_accel.architecture import ModelConfig, tensor_specs
from ernie_accel.bench.machine import dot_product_peak
from ernie_accel.bench.statistics import alternate, ratios, summarize

from .rival import PAUSE, llama_cpp
from .ways import continuously, in_batches, one_by_one
from .work import computed, generated, items

ROOM = 512
"""Tokens that a sequence of llama.cpp can hold: more than the longest request."""


@dataclass
class Rates:
    """What one way gave, one value a round.

    Attributes:
        tokens: Generated, a second.
        operations: Of the model's matrices, a second.
        peaks: Measured right before, operations a second.
        loops: Share of the time in which the engine's thread was not inside a step; ours alone.
    """

    tokens: list[float] = field(default_factory=list)
    operations: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    loops: list[float] = field(default_factory=list)


def requests(at_a_time: int) -> int:
    """How many a round has: enough that beginning and end count little, few enough for several rounds."""
    return max(6, 2 * at_a_time if at_a_time > 4 else 3 * at_a_time)


def matrix_operations(config: ModelConfig) -> tuple[int, int]:
    """Multiplications and additions of a dense model's matrices for a token: in the layers, and in the head."""
    specs = tensor_specs(config)
    layers = sum(
        spec.shape[0] * spec.shape[1]
        for name, spec in specs.items()
        if len(spec.shape) == 2 and name.startswith("model.layers.")
    )
    return 2 * layers, 2 * config.vocab_size * config.hidden_size


def measure(model: ea.Model, chosen: argparse.Namespace) -> dict[str, Any]:
    """Let all ways take turns on the same requests; return what is written down."""
    values: dict[str, Rates] = {}
    layers, head = matrix_operations(model.config)
    with ExitStack() as stack:
        runs: dict[str, Callable[[], float]] = {}

        def add(name: str, at_a_time: int, seconds: Callable[[int, int], float]) -> None:
            values[name] = Rates()
            runs[name] = partial(turn, name, requests(at_a_time), seconds)

        def turn(name: str, count: int, seconds: Callable[[int, int], float]) -> float:
            rates = values[name]
            seed = len(rates.tokens)
            work = items(chosen.work, count, seed)
            rates.peaks.append(dot_product_peak(chosen.threads))
            taken = seconds(count, seed)
            rates.tokens.append(generated(work) / taken)
            rates.operations.append((computed(work) * layers + generated(work) * head) / taken)
            return rates.tokens[-1]

        def ours(name: str, way: Callable[..., None], *size: int) -> None:
            def seconds(count: int, seed: int) -> float:
                return _ours(model, partial(way, model, items(chosen.work, count, seed), *size), values[name])

            add(name, size[0] if size else 1, seconds)

        ours("serial", one_by_one)
        for size in chosen.concurrency:
            if size > 1:
                ours(f"batches-{size}", in_batches, size)
            ours(f"continuous-{size}", continuously, size)
        if chosen.llama:
            for weights in chosen.formats:
                slots = max(chosen.llama)
                rival = stack.enter_context(llama_cpp(chosen.shape, weights, chosen.threads, slots, ROOM))
                for size in chosen.llama:
                    seconds = partial(rival.seconds, chosen.work, slots=size)
                    add(f"llama.cpp {weights}-{size}", size, seconds)
                rival.seconds(chosen.work, 2, 0, 2)  # warms up
        one_by_one(model, items(chosen.work, 2, 0))
        alternate(runs, chosen.rounds)
    return report(chosen, values)


def _ours(model: ea.Model, run: Callable[[], None], rates: Rates) -> float:
    model.clear_cache()
    time.sleep(PAUSE)
    before = model.metrics().histograms["step_seconds"].total
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    steps = model.metrics().histograms["step_seconds"].total - before
    rates.loops.append(1 - steps / seconds)
    return seconds


def report(chosen: argparse.Namespace, values: Mapping[str, Rates]) -> dict[str, Any]:
    """Return what was measured; ratios are taken within rounds."""
    rows = {name: row(rates) for name, rates in values.items()}
    rivals = [name for name in values if name.startswith("llama.cpp")]
    best = max(rivals, key=lambda name: median(values[name].tokens), default=None)
    for name, rates in values.items():
        rows[name]["by_serial"] = asdict(summarize(ratios(rates.tokens, values["serial"].tokens)))
        if best is not None and name.startswith("continuous"):
            rows[name]["by_llama"] = asdict(summarize(ratios(rates.tokens, values[best].tokens)))
    return {"work": chosen.work, "ways": rows, "best_llama": best}


def row(rates: Rates) -> dict[str, Any]:
    """One way: its rates, its share of the peak, and the share of the loop."""
    made: dict[str, Any] = {"tokens_per_second": summary(rates.tokens)}
    if all(rates.peaks):
        made["peak_share"] = asdict(summarize(ratios(rates.operations, rates.peaks)))
        made["peak"] = asdict(summarize(rates.peaks))
    if rates.loops:
        made["loop_share"] = asdict(summarize(rates.loops))
    return made


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every value."""
    return {**asdict(summarize(values)), "values": list(values)}
