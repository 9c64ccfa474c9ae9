"""What structured output costs a decode step, with a made tokenizer as large as ERNIE's, in the engine itself:
with masks before the step, and beside it."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ernie_accel as ea
from ernie_accel.backends.base import Step, StepResult
from ernie_accel.backends.capabilities import Overlaps
from ernie_accel.bench.statistics import summarize
from ernie_accel.engine.stepping import Batch, Stepper
from ernie_accel.engine.structured import Guide
from ernie_accel.quant.text import built_in_texts
from ernie_accel.testing.tokenizer import train_tokenizer

PIECES = 103_424
PROMPT = list(range(300, 332))
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou", "er", "in", "on", "al")
TEXT = {"type": "string", "maxLength": 200}
SHORT = {"type": "string", "maxLength": 10}


def _object(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, object]] = {
    "a record": _object(
        name={"type": "string", "maxLength": 40},
        kind={"enum": ["person", "place", "thing"]},
        born={"type": "integer", "minimum": 1900, "maximum": 2030},
        known={"type": "boolean"},
        notes=TEXT,
    ),
    "short strings": _object(tags={"type": "array", "items": SHORT, "minItems": 12, "maxItems": 12}),
    "nested": _object(
        people={
            "type": "array",
            "items": _object(first=SHORT, last=SHORT, age={"type": "integer", "minimum": 0, "maximum": 120}),
            "minItems": 4,
            "maxItems": 4,
        },
        summary=TEXT,
    ),
    "long text": _object(text={"type": "string", "minLength": 300, "maxLength": 400}),
}


@dataclass
class Cost:
    """Seconds spent on masks, and on following the structure."""

    masks: list[float]
    follows: list[float]


@contextmanager
def costs() -> Iterator[Cost]:
    """Time the guide's calls within the block."""
    cost = Cost([], [])

    def timed(method: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args)
            finally:
                into.append(time.perf_counter() - began)

        return call

    with (
        patch.object(Guide, "mask", timed(Guide.mask, cost.masks)),
        patch.object(Guide, "prepare", timed(Guide.prepare, cost.masks)),
        patch.object(Guide, "take", timed(Guide.take, cost.follows)),
    ):
        yield cost


@contextmanager
def masks_first() -> Iterator[None]:
    """Work masks out before each step within the block, as for a Runner that cannot overlap."""

    def first(
        stepper: Stepper, batch: Batch, waiting: dict[int, Guide], runner: Overlaps
    ) -> tuple[list[Step], list[StepResult]]:
        return stepper._run_after(batch, waiting)

    with patch.object(Stepper, "_run_beside", first):
        yield


def make_tokenizer(directory: Path) -> None:
    """Train a vocabulary of the real size on the built-in texts and on made words, with a fixed seed."""
    rng = random.Random(0)
    syllables = [
        a + b
        for a in ("b", "d", "g", "k", "l", "m", "n", "pr", "s", "st", "th", "v", "w", "z")
        for b in VOWELS
    ]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(60_000)]
    characters = [chr(0x4E00 + rng.randrange(5000)) for _ in range(5000)]

    def line() -> str:
        return " ".join(rng.choices(words, k=12)) + "，" + "".join(rng.choices(characters, k=12))

    train_tokenizer([*built_in_texts(), *(line() for _ in range(40_000))], directory, vocab_size=PIECES)


def decode(model: ea.Model, batch: int, **fields: Any) -> tuple[float, int]:
    """Decode a batch greedily; return seconds from the first token to the last, and tokens."""
    handles = [model.submit([*PROMPT, 400 + row], temperature=0, **fields) for row in range(batch)]
    results = [handle.result() for handle in handles]
    assert all(done.finish_reason == ("length" if "ignore_eos" in fields else "stop") for done in results)
    seconds = max(done.timings.decode_seconds for done in results)
    return seconds, sum(done.usage.completion_tokens for done in results)


def structured(model: ea.Model, schema: dict[str, object], batch: int) -> dict[str, float]:
    """Decode to the end of the structure once."""
    before = model.metrics().counters["steps"]
    with costs() as cost:
        seconds, tokens = decode(model, batch, max_tokens=1000, json_schema=schema)
    steps = model.metrics().counters["steps"] - before
    return {
        "tokens": tokens,
        "steps": steps,
        "step": 1e3 * seconds / (steps - 1),
        "mask": 1e6 * sum(cost.masks) / steps,
        "follow": 1e6 * sum(cost.follows) / steps,
        "rate": tokens / seconds,
    }


def measure(model: ea.Model, schema: dict[str, object], batch: int, rounds: int) -> dict[str, float]:
    """Alternate free decoding, and structured with masks before the step and beside it; medians.

    ``share`` is what masks and following cost before the step, by a free step; ``gain`` the time of a step with masks
    before it by that with masks beside it.
    """
    values: dict[str, list[float]] = {}
    for number in range(rounds):
        free = 1e3 * decode(model, batch, max_tokens=48, ignore_eos=True)[0] / 47
        found = {"free": free, "free rate": 1e3 * batch / free}
        for order in (0, 1):  # in turn, so that what slows a machine down slows both
            if (number + order) % 2:
                with masks_first():
                    found |= structured(model, schema, batch)
            else:
                beside = structured(model, schema, batch)
        found |= {"beside": beside["step"], "rate": beside["rate"], "gain": found["step"] / beside["step"]}
        found["share"] = (found["mask"] + found["follow"]) / free / 10
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return {name: summarize(each).median for name, each in values.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench structured", description=__doc__)
    parser.add_argument("--shape", default="0.3B", choices=("0.3B", "21B-A3B"))
    parser.add_argument("--precision", default="int8", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="requests that are decoded together")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    from benchmarks.end_to_end.formats.our_directory import our_directory

    chosen = arguments()
    source = our_directory(chosen.shape, chosen.precision)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file in source.iterdir():
            (directory / file.name).symlink_to(file)
        make_tokenizer(directory)
        with ea.Model.load(directory, threads=chosen.threads, progress=False) as model:
            report(model, chosen)


def report(model: ea.Model, chosen: argparse.Namespace) -> None:
    began = time.perf_counter()
    model.generate(PROMPT, max_tokens=1, choices=["a", "b"])
    print(f"first structured request: {time.perf_counter() - began:.2f} s")
    print(
        f"{'schema':<14} {'tokens':>6} {'steps':>6} {'free step':>10} {'mask':>9} {'follow':>9} {'share':>7} "
        f"{'before':>9} {'beside':>9} {'gain':>6} {'free/s':>7} {'tokens/s':>8}"
    )
    for name, schema in SCHEMAS.items():
        v = measure(model, schema, chosen.batch, chosen.rounds)
        counts = f"{name:<14} {v['tokens']:6.0f} {v['steps']:6.0f} {v['free']:7.2f} ms"
        costs_ = f"{v['mask']:6.0f} us {v['follow']:6.0f} us {v['share']:5.2f} %"
        steps = f"{v['step']:6.2f} ms {v['beside']:6.2f} ms {v['gain']:6.3f}"
        print(f"{counts} {costs_} {steps} {v['free rate']:7.1f} {v['rate']:8.1f}", flush=True)
    print(
        f"{chosen.shape} in {chosen.precision}, {PIECES} pieces, batch {chosen.batch}, {chosen.threads} threads, "
        f"greedy, medians of {chosen.rounds} rounds; share: mask and follow by a free step, where masks come before "
        "the step; gain: such a step by one with masks beside it"
    )


if __name__ == "__main__":
    main()
