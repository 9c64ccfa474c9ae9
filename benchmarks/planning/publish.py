"""Writes the tables of docs/guides/sizing.md between their marks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.planning.memory import POET, RESULT, within
from benchmarks.planning.published import FITTED, PUBLISHED
from benchmarks.planning.tables import speed_row

PAGE = Path("docs/guides/sizing.md")


def memory_table(rows: Sequence[dict[str, Any]], machine: dict[str, str]) -> str:
    """A line for each model and precision: cases, the largest errors, how many are within the bound."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        name = "poet" if row["model"] == POET else row["model"]
        name += f", {row['layers']} of its layers" if row["layers"] else ""
        groups.setdefault((name, row["precision"], "requests" if row["real"] else "claimed"), []).append(row)
    lines = [
        "| model | weights | KV cache filled by | cases | largest | loading, largest error | running, largest error | "
        "within 3 % or 64 MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    widths = ("fp32", "bf16", "int8", "int4")
    order = sorted(groups.items(), key=lambda group: (group[0][0], widths.index(group[0][1]), group[0][2]))
    for (name, precision, how), cases in order:
        good = sum(
            all(within(case["predicted"][w], case["measured"][w]) for w in ("loading", "running"))
            for case in cases
        )
        largest = max(case["measured"]["running"] for case in cases)
        lines.append(
            f"| {name} | {precision} | {how} | {len(cases)} | {largest / 2**20:,.0f} MiB | "
            f"{_worst(cases, 'loading')} | {_worst(cases, 'running')} | {good} |"
        )
    what = ", ".join(
        f"{machine[key]}" for key in ("processor", "cores", "memory", "system") if key in machine
    )
    lines += [
        "",
        "`scripts/bench plan memory` on contexts of 512 to 16,384 and 1 to 16 sequences; measured is the growth of "
        f"anonymous memory of a fresh process. {what} (cores counted).",
    ]
    return "\n".join(lines)


def _worst(cases: Sequence[dict[str, Any]], what: str) -> str:
    worst = max(cases, key=lambda case: abs(case["predicted"][what] - case["measured"][what]))
    real = worst["measured"][what]
    error = worst["predicted"][what] - real
    return f"{error / 2**20:+.0f} MiB ({error / real:+.1%})"


def speed_tables() -> str:
    """What constants were fitted to, and what they predict."""
    lines = []
    for title, figures in (("fitted to", FITTED), ("predicted", PUBLISHED)):
        lines += [
            f"| {title} | devices | engine | published, tokens/s | to expect | error | ceiling |",
            "|---|---|---|---|---|---|---|",
            *(speed_row(figure) for figure in figures),
            "",
        ]
    return "\n".join(lines).rstrip()


def replaced(text: str, mark: str, content: str) -> str:
    """The page with what stands between a mark and its end."""
    pattern = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"the page has no mark {mark}"
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def main() -> None:
    text = replaced(PAGE.read_text(encoding="utf-8"), "plan speed", speed_tables())
    if RESULT.exists():
        found = json.loads(RESULT.read_text(encoding="utf-8"))
        text = replaced(text, "plan memory", memory_table(found["rows"], found["machine"]))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
