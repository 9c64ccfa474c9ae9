"""Writes the tables of docs/guides/sizing.md between their marks."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.planning.memory import OTHERS, POET, RESULT, good, saved
from benchmarks.planning.published import FITTED, PUBLISHED
from benchmarks.planning.speed import RESULT as SPEED
from benchmarks.planning.speed import errors
from benchmarks.planning.tables import speed_row
from ernie_accel.bench.workload import Workload

PAGE = Path("docs/guides/sizing.md")


def memory_table(rows: Sequence[dict[str, Any]], machine: dict[str, str]) -> str:
    """A line for each model and precision: cases, the largest errors, how many are within the bound."""
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        name = "poet" if row["model"] == POET else row["model"]
        name += f", {row['layers']} of its layers" if row["layers"] else ""
        how = "requests" if row["real"] else "claimed"
        groups.setdefault((row["backend"], name, row["precision"], how), []).append(row)
    lines = [
        "| model | weights | KV cache filled by | cases | largest | loading, largest error | running, largest error | "
        "within 3 % or 64 MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    widths = ("fp32", "bf16", "int8", "int4")
    order = sorted(groups.items(), key=lambda group: (*group[0][:2], widths.index(group[0][2]), group[0][3]))
    for (_, name, precision, how), cases in order:
        largest = max(case["measured"]["running"] for case in cases)
        lines.append(
            f"| {name} | {precision} | {how} | {len(cases)} | {largest / 2**20:,.0f} MiB | "
            f"{_worst(cases, 'loading')} | {_worst(cases, 'running')} | {sum(map(good, cases))} |"
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
    known = [case for case in cases if what in case["measured"]]
    if not known:
        return ""
    worst = max(known, key=lambda case: abs(case["predicted"][what] - case["measured"][what]))
    real = worst["measured"][what]
    error = worst["predicted"][what] - real
    return f"{error / 2**20:+.0f} MiB ({error / real:+.1%})"


def others_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each case of another backend."""
    lines = [
        "| backend | model | weights | load | loading: planned, measured | running: planned, measured | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        rows, key=lambda row: list(OTHERS).index(row["backend"]) if row["backend"] in OTHERS else -1
    ):
        if row["backend"] in OTHERS:
            said, real = row["predicted"], row["measured"]
            pairs = [f"{said[w] / 2**20:,.0f} and {real[w] / 2**20:,.0f} MiB" for w in ("loading", "running")]
            name = "poet" if row["model"] == POET else row["model"]
            load = f"{row['sequences']} x {row['context']}"
            cells = (row["backend"], name, row["precision"], load, *pairs)
            lines.append(f"| {' | '.join(cells)} | {said['running'] / real['running'] - 1:+.0%} |")
    return "\n".join(lines)


def processors_table() -> str:
    """Expected beside measured tokens per second, a line for each backend, precision and workload."""
    lines = [
        "| backend | weights | workload | GB/s | to expect, tokens/s | measured | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in json.loads(SPEED.read_text(encoding="utf-8"))["rows"]:
        said, real, error = errors(row)
        bandwidth = statistics.median(found["bandwidth"] for found in row["rounds"]) / 1e9
        ranks = f" in {row['ranks']} processes" if row["ranks"] > 1 else ""
        lines.append(
            f"| {row['backend']}{ranks} | {row['precision']} | {Workload(**row['workload']).name} | {bandwidth:.0f} | "
            f"{said:,.1f} | {real:,.1f} | {error:+.0%} |"
        )
    return "\n".join(lines)


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
        found = saved()
        native = [row for row in found["rows"] if row["backend"] == "native"]
        text = replaced(text, "plan memory", memory_table(native, found["machine"]))
        text = replaced(text, "plan memory of others", others_table(found["rows"]))
    if SPEED.exists():
        text = replaced(text, "plan processors", processors_table())
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
