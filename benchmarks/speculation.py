"""What prompt lookup gains where a text is quoted, and costs where none is: SmolLM2 on passages of WikiText-2."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import ernie_accel as ea
from benchmarks.accuracy import smollm2, texts
from ernie_accel.bench.machine import busy, describe, versions
from ernie_accel.bench.statistics import alternate, ratios, summarize

RESULTS = Path(__file__).parent / "results"
PASSAGE_LETTERS = (900, 1500)
TASKS = {
    "quote": "Summarize the following text, quoting its most important sentences word for word.\n\n{passage}",
    "correct": "Correct the spelling of the following text and write it again.\n\n{passage}",
    "free": "Write a long story in which this word occurs: {word}",
}
TEMPERATURES = {"greedy": 0.0, "sampled": 0.8, "wild": 1.5}
"""The last gives text in which hardly anything comes again."""


@dataclass
class Run:
    """Of all answers to a task, one round: tokens after the first a second, and what speculation did."""

    rate: float
    tokens: int
    drafted: int
    accepted: int


def prompts(data: Path, task: str, count: int) -> list[str]:
    """Return prompts over passages that lie evenly in the text."""
    fewest, most = PASSAGE_LETTERS
    lines = [texts.plain(line) for line in texts.read(data / texts.WIKITEXT).splitlines()]
    passages = [line for line in lines if fewest <= len(line) <= most]
    chosen = [passages[index * len(passages) // count] for index in range(count)]
    longest = [max(passage.split(), key=len).strip(".,;:()\"'") for passage in chosen]
    return [TASKS[task].format(passage=p, word=w) for p, w in zip(chosen, longest, strict=True)]


class Contest:
    """Both ways answer the same prompts and must write the same; each is loaded anew for each round."""

    def __init__(
        self, folder: Path, asked: list[str], temperature: float, chosen: argparse.Namespace
    ) -> None:
        self._folder = folder
        self._asked = asked
        self._temperature = temperature
        self._chosen = chosen
        self._written: list[tuple[int, ...]] = []
        self.runs: dict[str, list[Run]] = {"off": [], "lookup": []}

    def turn(self, speculation: Any) -> float:
        """Answer all prompts; return tokens a second."""
        chosen, engine = self._chosen, ea.EngineOptions(speculation=speculation)
        with ea.Model.load(
            self._folder,
            precision=chosen.precision,
            threads=chosen.threads,
            max_batch=chosen.batch,
            engine=engine,
            progress=False,
        ) as model:
            self._answer(model, self._asked[:1])  # warms up
            began = time.perf_counter()
            done = self._answer(model, self._asked)
            seconds = time.perf_counter() - began
        if chosen.batch == 1:
            seconds = sum(one.timings.decode_seconds for one in done)
        tokens = sum(one.usage.completion_tokens - 1 for one in done)
        drafted = sum(one.timings.drafted_tokens for one in done)
        accepted = sum(one.timings.accepted_tokens for one in done)
        self.runs[speculation].append(Run(tokens / seconds, tokens, drafted, accepted))
        self._compare([one.token_ids for one in done])
        return tokens / seconds

    def _answer(self, model: ea.Model, asked: list[str]) -> list[ea.Completion]:
        """Ask everything at once; as many as ``max_batch`` allows are answered together."""
        assert model.tokenizer is not None
        handles = [
            model.submit(
                model.tokenizer.encode_chat([{"role": "user", "content": text}]),
                max_tokens=self._chosen.tokens,
                temperature=self._temperature,
                top_p=0.95,
                seed=1,
            )
            for text in asked
        ]
        return [handle.result() for handle in handles]

    def _compare(self, written: list[tuple[int, ...]]) -> None:
        if self._written and written != self._written:
            raise SystemExit("error: speculation changed what was written")
        self._written = written


def measure(folder: Path, task: str, temperature: float, chosen: argparse.Namespace) -> dict[str, Any]:
    """Let the ways take turns; return what is written down."""
    contest = Contest(folder, prompts(chosen.data, task, chosen.prompts), temperature, chosen)
    rates = alternate(
        {"off": lambda: contest.turn("off"), "lookup": lambda: contest.turn("lookup")}, chosen.rounds
    )
    gain = ratios(rates["lookup"], rates["off"])
    one = contest.runs["lookup"]
    return {
        "tokens": one[0].tokens,
        **{name: {**asdict(summarize(values)), "values": values} for name, values in rates.items()},
        "gain": {**asdict(summarize(gain)), "values": gain},
        "drafted": summarize([run.drafted / run.tokens for run in one]).median,
        "accepted": summarize([run.accepted / run.tokens for run in one]).median,
    }


def line(task: str, way: str, made: dict[str, Any]) -> str:
    """One row of the table in docs/performance.md."""
    gain, off, on = made["gain"], made["off"], made["lookup"]
    return (
        f"| {task}, {way} | {off['median']:.0f} | {on['median']:.0f} | {gain['median']:.2f} | "
        f"{gain['low']:.2f} – {gain['high']:.2f} | {made['drafted']:.2f} | {made['accepted']:.2f} |"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench speculation", description=__doc__)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--way", nargs="+", default=["greedy", "sampled"], choices=TEMPERATURES)
    parser.add_argument("--precision", default="int8", choices=("fp32", "bf16", "int8", "int4"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="requests that are answered together")
    parser.add_argument("--prompts", type=int, default=6, help="for each task")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=texts.DATA, help="folder with wikitext-2-raw")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    folder = smollm2.ensure()
    print("| task | off, tokens/s | lookup | gain | lowest to highest | drafts a token | of them right |")
    print("|---|---|---|---|---|---|---|")
    made: dict[str, Any] = {}
    before = busy()
    for task in chosen.task:
        for way in chosen.way:
            found = made[f"{task}, {way}"] = measure(folder, task, TEMPERATURES[way], chosen)
            print(line(task, way, found), flush=True)
    others = max(before or 0.0, busy() or 0.0)
    if chosen.no_save:
        return
    name = f"speculation-{chosen.precision}" + (f"x{chosen.batch}" if chosen.batch > 1 else "")
    result = {
        "name": name,
        "command": shlex.join(["scripts/bench", "speculation", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": describe(),
        "versions": versions(["ernie-accel", "numpy"]),
        "others_busy": others,
        "model": "SmolLM2-135M-Instruct",
        **{key: getattr(chosen, key) for key in ("threads", "batch", "prompts", "tokens", "rounds")},
        "tasks": made,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
