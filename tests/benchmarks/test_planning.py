"""What the benchmarks of the planner make of their measurements."""

from __future__ import annotations

from typing import Any

from benchmarks.planning.memory import cases, good, within
from benchmarks.planning.publish import memory_table

MIB = 1 << 20


def row(loading: int | None, running: int, sequences: int = 1) -> dict[str, Any]:
    """A case that was predicted to take 2,000 and 4,000 MiB."""
    measured = {"running": running * MIB, "mapped": 0}
    if loading is not None:
        measured["loading"] = loading * MIB
    case = {"model": "0.3B", "layers": None, "precision": "int4", "context": 512, "sequences": sequences}
    return {
        **case,
        "backend": "native",
        "real": False,
        "predicted": {"loading": 2000 * MIB, "running": 4000 * MIB},
        "measured": measured,
    }


def test_a_prediction_may_be_wrong_by_three_percent_or_64_mib() -> None:
    assert within(100 * MIB, 160 * MIB)
    assert not within(100 * MIB, 165 * MIB)
    assert within(9750 * MIB, 10000 * MIB)
    assert not within(9650 * MIB, 10000 * MIB)


def test_loading_counts_only_where_it_was_measured() -> None:
    assert good(row(1990, 4010))
    assert not good(row(1800, 4010))
    assert good(row(None, 4010))
    assert not good(row(None, 3000))


def test_the_table_counts_what_is_good_and_shows_the_worst_loading_that_was_measured() -> None:
    rows = [row(1990, 4010), row(None, 3990, 4), row(None, 3000, 16)]
    (line,) = [part for part in memory_table(rows, {}).splitlines() if part.startswith("| 0.3B")]
    assert "| 3 | 4,010 MiB | +10 MiB (+0.5%) | +1000 MiB (+33.3%) | 2 |" in line
    (bare,) = [part for part in memory_table([row(None, 4000)], {}).splitlines() if part.startswith("| 0.3B")]
    assert "| 1 | 4,000 MiB |  | +0 MiB (+0.0%) | 1 |" in bare


def test_the_matrix_has_every_context_and_batch_of_every_precision() -> None:
    found = {(c["model"], c["layers"], c["precision"]) for c in cases(quick=False)}
    assert {("0.3B", None, p) for p in ("fp32", "bf16", "int8", "int4")} <= found
    assert {("21B-A3B", None, "int4"), ("21B-A3B", 4, "bf16")} <= found
    whole = [c for c in cases(quick=False) if (c["model"], c["precision"]) == ("0.3B", "int4")]
    assert len({(c["context"], c["sequences"]) for c in whole}) == 12
