"""Write what was measured: JSON for programs, a plot of waiting times, tables between marks in the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..end_to_end.publish import number, replace, write
from .plot import plot

Result = dict[str, Any]

PAGE = "docs/performance.md"
TITLES = {
    "serial": "one by one",
    "batches": "fixed batches",
    "continuous": "continuous",
    "latency-target": "continuous, `latency_target={latency_target}`",
}
WORK = {
    "even": "prompts of 128 tokens, 64 tokens after each",
    "mixed": "prompts of 16 to 240 tokens, 8 to 256 tokens after each (128 and about 64 on average)",
}


def table(result: Result) -> str:
    """Markdown: the figures, then the conditions."""
    return "\n".join([*TABLES[result["experiment"]](result), "", conditions(result)])


def conditions(result: Result) -> str:
    """One paragraph on how the figures came about."""
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    words = [f"`{result['command']}` on {result['date']}: {result['shape']} shape, random weights"]
    words += [f"{result['precision']}, {result['threads']} threads"]
    words += [WORK[result["work"]]] if "work" in result else []
    words += [f"{result['rounds']} alternating rounds, medians with lowest and highest"]
    machine = "{processor}, {cores} cores, {memory}, {system}, Python {python}".format(**result["machine"])
    return f"{'; '.join(words)}. {more(result)}{machine}; {packages}."


def more(result: Result) -> str:
    """What is particular to an experiment."""
    if result["experiment"] == "arrivals":
        return (
            f"{result['requests']} requests a round at {result['load']:.0%} of {result['capacity']:.1f} requests/s; "
            f"batches of at most {result['batch']}. "
        )
    peaks = [row["peak"]["median"] for row in result.get("ways", {}).values() if "peak" in row]
    return f"Peak of VNNI's dot products {max(peaks) / 1e12:.2f} Tera-operations/s. " if peaks else ""


def throughput(result: Result) -> list[str]:
    """One row a way."""
    rows = [
        [
            *("way to serve", "requests at a time", "tokens/s", "lowest to highest", "÷ one by one"),
            *("÷ best of llama.cpp", "of the peak", "outside steps"),
        ]
    ]
    for name, row in result["ways"].items():
        way, _, size = name.partition("-")
        rate = row["tokens_per_second"]
        rows.append(
            [
                TITLES.get(way, f"{way}, continuous"),
                size or "1",
                number(rate["median"]),
                f"{number(rate['low'])} – {number(rate['high'])}",
                f"{row['by_serial']['median']:.2f}" if way != "serial" else "",
                f"{row['by_llama']['median']:.2f}" if "by_llama" in row else "",
                f"{row['peak_share']['median']:.0%}" if "peak_share" in row else "",
                f"{row['loop_share']['median']:.1%}" if "loop_share" in row else "",
            ]
        )
    return lines(rows)


def arrivals(result: Result) -> list[str]:
    """One row a way: milliseconds that half and 95 of a hundred do not exceed."""
    rows = [
        [
            *("way to serve", "first token, ms: half", "95 %", "batches ÷ it"),
            *("between tokens, ms: half", "95 %", "99 %"),
        ]
    ]
    for name, row in result["ways"].items():
        rows.append(
            [
                TITLES[name].format(**result),
                milliseconds(row["first_token_50"]),
                milliseconds(row["first_token_95"]),
                f"{row['first_token_95']['batches_by_it']['median']:.2f}" if name != "batches" else "",
                *(milliseconds(row[f"between_tokens_{share}"]) for share in (50, 95, 99)),
            ]
        )
    return lines(rows)


def moments(result: Result) -> list[str]:
    """One row a moment."""
    cancel, seen = result["cancel"], result["seen"]
    return lines(
        [
            ["", "ms"],
            [
                f"from `cancel()` in a prompt of {cancel['prompt']} tokens to the result",
                milliseconds(cancel["seconds"]),
            ],
            [
                "a chunk of that prompt (the mean of those that were computed)",
                milliseconds(cancel["chunk_seconds"]),
            ],
            [
                f"first token after {seen['beginning']} + {seen['new']} tokens",
                milliseconds(seen["first_time"]),
            ],
            [
                f"the same, the first {seen['beginning']} seen before ({seen['ratio']['median']:.0f} times shorter)",
                milliseconds(seen["again"]),
            ],
        ]
    )


def milliseconds(seconds: dict[str, float]) -> str:
    """Median, and the range of the rounds."""
    low, middle, high = (number(1e3 * seconds[key]) for key in ("low", "median", "high"))
    return f"{middle} ({low} – {high})"


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown of a table whose first row is the heading."""
    heading, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [heading, "|---" * len(rows[0]) + "|", *rest]


TABLES: dict[str, Callable[[Result], list[str]]] = {
    "throughput": throughput,
    "arrivals": arrivals,
    "moments": moments,
}


def publish(result: Result, root: Path) -> list[Path]:
    """Replace a result, its plot if it has one, and its table where the page has marks for it."""
    folder = root / "benchmarks/results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    written = [path]
    if result["experiment"] == "arrivals":
        written.append(path.with_suffix(".svg"))
        write(written[-1], plot(result, {name: TITLES[name].format(**result) for name in result["ways"]}))
    return [*written, *place(result, root)]


def place(result: Result, root: Path) -> list[Path]:
    """Put the table where the page has marks for it."""
    return [root / PAGE] if replace(root / PAGE, result["name"], table(result)) else []


def results(root: Path) -> list[Path]:
    """Files of results that this tool wrote, by name."""
    return sorted((root / "benchmarks/results").glob("*-serving-*.json"))


if __name__ == "__main__":
    here = Path(__file__).parents[2]
    for file in results(here):
        print(file.stem, *place(json.loads(file.read_text(encoding="utf-8")), here))
