"""Write what was measured: JSON for programs, and a table between marks in docs/accuracy.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.end_to_end.publish import replace

PAGE = "docs/accuracy.md"
TITLES = ("", "perplexity", "KL, nats a token", "largest KL", "same top token")
TEXTS = {
    "poet": "{sequences} held-out poems, {tokens:,} tokens",
    "smollm2": "WikiText-2's test split, {sequences} windows of 512 tokens",
    "last-words": "{passages:,} passages of WikiText-2's test split",
}


def table(result: Mapping[str, Any]) -> str:
    """Markdown: what was found, then the conditions."""
    rows = words(result) if result["name"] == "last-words" else [*models(result), *bits(result)]
    return "\n".join([*rows, "", conditions(result)])


def models(result: Mapping[str, Any]) -> list[str]:
    """One row a candidate, after fp32."""
    first = next(iter(result["models"].values()))
    rows = [row(name, figures) for name, figures in result["models"].items()]
    reference = f"| fp32 | {first['reference_perplexity']:.3f} | | | |"
    return [f"| {' | '.join(TITLES)} |", "|---|---|---|---|---|", reference, *rows]


def row(name: str, figures: Mapping[str, float]) -> str:
    """One candidate; what follows ± is the standard error."""
    change, error = 100 * figures["perplexity_change"], 100 * figures["log_ratio_error"]
    return (
        f"| {name} | {change:+.2f} % ± {error:.2f} | {figures['kl']:.5f} ± {figures['kl_error']:.5f} "
        f"| {figures['kl_max']:.2f} | {100 * figures['top1']:.2f} % |"
    )


def bits(result: Mapping[str, Any]) -> list[str]:
    """Bits a weight by class, everything counted, and how the codes were chosen."""
    if not result["bits"]:
        return []
    lines = ["", "| | bits a weight, by class | recipe |", "|---|---|---|"]
    for precision, by_class in result["bits"].items():
        listed = ", ".join(f"{name} {value:.2f}" for name, value in by_class.items())
        lines.append(f"| {precision} | {listed} | {result['recipes'][precision]} |")
    return lines


def words(result: Mapping[str, Any]) -> list[str]:
    """How many last words were right, and how many points that is beside fp32."""
    count, counts = result["passages"], result["right"]
    lines = [f"| | last words right, of {count:,} | points beside fp32 |", "|---|---|---|"]
    for name, right in counts.items():
        beside = "" if name == "fp32" else f"{100 * (right - counts['fp32']) / count:+.1f}"
        lines.append(f"| {name} | {right} | {beside} |")
    return lines


def conditions(result: Mapping[str, Any]) -> str:
    """One paragraph on how the figures came about."""
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = TEXTS[result["name"]].format(**result)
    return (
        f"`{result['command']}` on {result['date']}: {text}. {machine['processor']}, {machine['system']}, "
        f"Python {machine['python']}; {packages}."
    )


def publish(result: Mapping[str, Any], root: Path) -> list[Path]:
    """Replace the result of this model, and its table on the page."""
    path = root / f"benchmarks/results/accuracy-{result['name']}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = root / PAGE
    return [path, page] if replace(page, f"accuracy {result['name']}", table(result)) else [path]
