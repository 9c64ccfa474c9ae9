"""How much prompt lookup could gain at most on what a model writes, if it knew how many guesses are right.

``python -m benchmarks.lookup_bound``: SmolLM2 answers the prompts of ``scripts/bench speculation``; the rest is counted
from what it wrote and from how long steps of several rows take. Two bounds: the best depth at the places that
lookup finds, and the best depth at the best place.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import ernie_accel as ea
from benchmarks.accuracy import smollm2, texts
from benchmarks.speculation import TASKS, TEMPERATURES, prompts
from ernie_accel.engine.lookup import Lookup

DEEPEST = 24
ROWS = (1, 2, 3, 5, 9)
MILLISECONDS = (3.9, 4.6, 5.2, 5.8, 6.8)
"""Of a step of SmolLM2 in int8 with so many rows, two threads; ``--milliseconds`` takes others."""


class Text(NamedTuple):
    """Ids of a prompt and of the answer to it."""

    prompt: list[int]
    answer: list[int]


def costs(milliseconds: Sequence[float]) -> list[float]:
    """Durations of steps of 1 to ``DEEPEST`` + 1 rows in the unit of one row; straight on beyond what was measured."""
    slope = (milliseconds[-1] - milliseconds[-2]) / (ROWS[-1] - ROWS[-2])
    last = milliseconds[-1] + slope * (DEEPEST + 1 - ROWS[-1])
    rows = np.arange(1, DEEPEST + 2)
    known = np.interp(rows, [*ROWS, DEEPEST + 1], [*milliseconds, last])
    return [float(value / milliseconds[0]) for value in known]


def found(text: Text) -> tuple[list[int], list[int]]:
    """For each id of the answer: how many guesses are right at the place found, and the match's length."""
    tokens = list(text.prompt)
    lookup = Lookup(tokens)
    lookup.learn(len(tokens))
    lookup.find()
    right, matches = [], []
    for at in range(len(text.answer)):
        if at:
            tokens.append(text.answer[at - 1])
            lookup.follow()
        guesses = lookup.guess(DEEPEST) if lookup.match else []
        right.append(_common(guesses, text.answer[at:]))
        matches.append(lookup.match)
    return right, matches


def best_places(text: Text) -> list[int]:
    """The same for the place that is best, wherever it is."""
    whole = text.prompt + text.answer
    return [
        max(_common(whole[place : min(place + DEEPEST, at)], whole[at:]) for place in range(at))
        for at in range(len(text.prompt), len(whole))
    ]


def least_time(right: Sequence[int], cost: Sequence[float]) -> float:
    """Time of writing all ids but the first, with the best depth in every step."""
    count = len(right)
    rest = [0.0] * (count + 1)
    for at in range(count - 1, 0, -1):
        rest[at] = min(
            cost[depth] + rest[min(count, at + 1 + depth)] for depth in range(min(right[at], DEEPEST) + 1)
        )
    return rest[1] if count > 1 else 0.0


def _common(guesses: Sequence[int], tokens: Sequence[int]) -> int:
    count = 0
    for guess, token in zip(guesses, tokens, strict=False):
        if guess != token:
            break
        count += 1
    return count


def written(chosen: argparse.Namespace) -> list[Text]:
    """Have the model answer."""
    made = []
    with ea.Model.load(smollm2.ensure(), precision="int8", progress=False) as model:
        assert model.tokenizer is not None
        for question in prompts(chosen.data, chosen.task, chosen.prompts):
            ids = model.tokenizer.encode_chat([{"role": "user", "content": question}])
            done = model.generate(
                ids, max_tokens=chosen.tokens, temperature=TEMPERATURES[chosen.way], top_p=0.95, seed=1
            )
            made.append(Text(list(ids), list(done.token_ids)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookup_bound", description=__doc__)
    parser.add_argument("--task", default="quote", choices=TASKS)
    parser.add_argument("--way", default="sampled", choices=TEMPERATURES)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--milliseconds", type=float, nargs=len(ROWS), default=MILLISECONDS)
    parser.add_argument("--data", default=texts.DATA)
    chosen = parser.parse_args()
    cost, answers = costs(chosen.milliseconds), written(chosen)
    tokens, depth, place = 0, 0.0, 0.0
    matched: Counter[int] = Counter()
    held: Counter[int] = Counter()
    for text in answers:
        right, matches = found(text)
        tokens += len(right) - 1
        depth += least_time(right, cost)
        place += least_time(best_places(text), cost)
        matched.update(matches[1:])
        held.update(match for match, count in zip(matches[1:], right[1:], strict=True) if count)
    print(
        f"{tokens} tokens; best depth {tokens / depth:.2f}, best depth at the best place {tokens / place:.2f}"
    )
    for match, times in sorted(matched.items())[:9]:
        print(
            f"match of {match}: {times / tokens:.0%} of positions, first guess right in {held[match] / times:.0%}"
        )


if __name__ == "__main__":
    main()
