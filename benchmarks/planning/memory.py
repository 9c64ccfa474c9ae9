"""Predicted beside measured memory, each case in a fresh process: of the native backend, and with ``--backend`` others.

A case is a model, a precision, a context and a number of sequences. Its KV cache is filled by claiming pages without
computing (``NativeRunner.claim``) after one full step was computed, or by real requests (``--real``). Measured is the
growth of anonymous memory from before ``Model.load``: its peak while loading, and its peak at work; pages of mapped
files are counted apart. Checkpoints of published shapes are virtual, with random weights.

Loading does not depend on context and number of sequences, and calibrating int8 and int4 takes a minute: with
``--warm`` cases after the first find its codes in the cache, and only their peak at work is compared.

Other backends are filled by requests that write the last quarter of the context, during which their cache grows once
more; processes that they start count too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ernie_accel.bench.machine import describe
from ernie_accel.display import size

RESULT = Path("benchmarks/results/plan-memory.json")
POET = "examples/poet/model"
LIMIT = 20 << 30
OTHERS = {
    "paddle": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "fastdeploy-ort": ("fp32",),
    "fastdeploy-openvino": ("fp32", "bf16"),
}
"""Backends besides the native one, and the precisions that are measured of them."""

CONTEXTS = (512, 2048, 8192, 16384)
BATCHES = (1, 4, 16)
TOLERANCE = 64 << 20


def cases(quick: bool) -> list[dict[str, Any]]:
    """All combinations, poet first; with ``quick`` the smallest and the largest of each."""
    contexts, batches = ((512, 8192), (1, 16)) if quick else (CONTEXTS, BATCHES)
    poet = [
        {"model": POET, "layers": None, "precision": precision, "context": context, "sequences": batch}
        for precision in ("fp32", "bf16", "int8", "int4")
        for context in (512, 2048)
        for batch in batches
    ]
    shapes: list[tuple[str, int | None, tuple[str, ...]]] = [
        ("0.3B", None, ("fp32", "bf16", "int8", "int4")),
        ("21B-A3B", 4, ("bf16", "int8", "int4")),
    ]
    if not quick:
        shapes.append(("21B-A3B", None, ("int4",)))
    rest = [
        {"model": name, "layers": layers, "precision": precision, "context": context, "sequences": batch}
        for name, layers, precisions in shapes
        for precision in precisions
        for context in contexts
        for batch in batches
    ]
    return [*poet, *rest]


def cases_of(backend: str) -> list[dict[str, Any]]:
    """The cases of another backend: poet and 0.3B at few contexts, since all of it is computed."""
    loads = [(POET, 512, 1), (POET, 2048, 4), ("0.3B", 256, 1), ("0.3B", 256, 4)]
    return [
        {"model": model, "layers": None, "precision": precision, "context": context, "sequences": batch}
        for precision in OTHERS[backend]
        for model, context, batch in loads
    ]


def source_of(case: dict[str, Any]) -> Any:
    """The checkpoint of a case."""
    from ernie_accel.testing import synthetic

    if case["model"] == POET:
        return POET
    return synthetic(case["model"], layers=case["layers"])


def planned(case: dict[str, Any]) -> dict[str, int]:
    """What the planner says of it."""
    import ernie_accel as ea

    plan = ea.plan(
        source_of(case),
        devices="cpu",
        backend=case["backend"],
        precision=case["precision"],
        max_context=case["context"],
        max_batch=case["sequences"],
        threads=2,
    )
    assert plan.loading is not None
    return {"loading": plan.loading, "running": plan.peak, "fits": plan.fits, "required": plan.required}


def measured(case: dict[str, Any]) -> dict[str, int]:
    """Load and fill in this process."""
    from ernie_accel.bench.memory import MemoryWatch, resident
    from ernie_accel.model import Model

    source = source_of(case)
    others = case["backend"] != "native"
    before = resident(children=others)
    with MemoryWatch(before, children=others) as loading:
        model = Model.load(
            source,
            backend=case["backend"],
            precision=case["precision"],
            max_context=case["context"],
            max_batch=case["sequences"],
            threads=2,
            progress=False,
        )
    with model, MemoryWatch(before, children=others) as running:
        _fill(model, case)
        time.sleep(0.05)  # so that the watch looks once more
    return {
        "loading": loading.peak,
        "running": running.peak,
        "mapped": max(loading.mapped, running.mapped),
    }


def _fill(model: Any, case: dict[str, Any]) -> None:
    context, sequences = case["context"], case["sequences"]
    # Nobody may end before the last one's prompt is read, or not all would fill their context at once.
    drawn = min(context // 4, 2 * sequences + 2) if case["backend"] == "native" else context // 4
    vocab = model.config.vocab_size
    prompts = [
        [(7 * place + 13 * index + 3) % vocab for place in range(context - drawn)]
        for index in range(sequences)
    ]
    if case["real"]:
        model.generate(prompts, max_tokens=drawn, temperature=0, ignore_eos=True)
        return
    runner, drawn = model._engine._runner, 4
    # The widest step first; what it appended counts among the tokens.
    model.generate(prompts[0][: min(512, context - drawn)], max_tokens=drawn, temperature=0)
    model.clear_cache()
    for _ in range(sequences):
        runner.claim(runner.open(), context)


def child(case: dict[str, Any], cache: str | None = None) -> dict[str, Any]:
    """Measure a case in a process of its own.

    ``cache`` is where codes are kept that earlier cases have calibrated; None is empty, as at a first load.
    """
    command = [sys.executable, "-m", "benchmarks.planning.memory", "--case", json.dumps(case)]
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "ERNIE_ACCEL_CACHE": cache or empty}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def within(predicted: int, real: int) -> bool:
    """At most 3 % or 64 MB beside it."""
    return abs(predicted - real) <= max(TOLERANCE, 0.03 * real)


def compared(row: dict[str, Any]) -> list[str]:
    """What of a row can be compared: both peaks, or the one at work where codes came from a cache."""
    return [what for what in ("loading", "running") if what in row["measured"]]


def good(row: dict[str, Any]) -> bool:
    """Whether all of it was right."""
    return all(within(row["predicted"][what], row["measured"][what]) for what in compared(row))


def run(chosen: Sequence[dict[str, Any]], keep: bool, cache: str | None) -> list[dict[str, Any]]:
    """Measure all that fit, one after the other; ``keep`` writes each result down at once."""
    rows: list[dict[str, Any]] = []
    for case in chosen:
        plan = planned(case)
        if plan["required"] > LIMIT or max(plan["loading"], plan["required"]) > LIMIT:
            continue
        warm = cache is not None and case["precision"] in ("int8", "int4") and any(Path(cache).iterdir())
        row = {**case, "predicted": plan, "measured": child(case, cache)}
        if warm:
            del row["measured"]["loading"]
        rows.append(row)
        print(line(row), flush=True)
        if keep:
            save([row])
    return rows


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    name = row["model"].rpartition("/")[2] if row["model"] != POET else "poet"
    name += f", {row['layers']} layers" if row["layers"] else ""
    name += f" {row['backend']}" if row["backend"] != "native" else ""
    how = "requests" if row["real"] else "claimed"
    parts = [f"{name:<18} {row['precision']:<5} {row['sequences']:>2} x {row['context']:>6} {how:<8}"]
    for what in compared(row):
        predicted, real = row["predicted"][what], row["measured"][what]
        mark = "" if within(predicted, real) else "  <-- beyond 3 % and 64 MB"
        parts.append(
            f"{what} {size(predicted):>11} {size(real):>11} {(predicted - real) / 2**20:+7.0f} MiB{mark}"
        )
    return "   ".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench plan memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest and the largest of each")
    parser.add_argument("--backend", default="native", choices=["native", *OTHERS], help="default: native")
    parser.add_argument("--model", help="only this: poet, 0.3B, 21B-A3B")
    parser.add_argument("--precision", nargs="*", help="only these")
    parser.add_argument("--layers", type=int, help="only cases with so many layers; 0: with all")
    parser.add_argument("--context", type=int, nargs="*", help="only these")
    parser.add_argument("--batch", type=int, nargs="*", help="only these")
    parser.add_argument(
        "--real", action="store_true", help="fill the cache by requests instead of claiming pages"
    )
    parser.add_argument("--warm", action="store_true", help="calibrate once; see above")
    parser.add_argument(
        "--cache", help="with --warm: the directory that keeps codes, of one model in one precision"
    )
    parser.add_argument("--again", action="store_true", help="measure nothing, plan anew what was measured")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def selected(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases that the options leave."""
    model = POET if chosen.model == "poet" else chosen.model
    native = chosen.backend == "native"
    return [
        {**case, "backend": chosen.backend, "real": chosen.real or not native}
        for case in (cases(chosen.quick) if native else cases_of(chosen.backend))
        if model in (None, case["model"])
        and (not chosen.precision or case["precision"] in chosen.precision)
        and (not chosen.context or case["context"] in chosen.context)
        and (not chosen.batch or case["sequences"] in chosen.batch)
        and (chosen.layers is None or (case["layers"] or 0) == chosen.layers)
    ]


def saved() -> dict[str, Any]:
    """What was measured up to now."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    for row in found["rows"]:
        row.setdefault("backend", "native")
    return found


def save(rows: list[dict[str, Any]]) -> None:
    """Keep results beside those of other cases."""
    kept = saved()["rows"] if RESULT.exists() else []
    identity = ("backend", "model", "layers", "precision", "context", "sequences", "real")
    table = {tuple(row[name] for name in identity): row for row in [*kept, *rows]}
    text = json.dumps({"machine": describe(), "rows": list(table.values())}, indent=1)
    RESULT.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    chosen = arguments()
    if chosen.case:
        print(json.dumps(measured(json.loads(chosen.case))))
        return
    if chosen.again:
        rows = [{**row, "predicted": planned(row)} for row in saved()["rows"]]
        save(rows)
        bad = [row for row in rows if not good(row)]
        print(*map(line, bad), f"{len(rows)} cases, {len(bad)} of them beyond 3 % and 64 MB", sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = chosen.cache or folder if chosen.warm else None
        rows = run(selected(chosen), not chosen.no_save, cache)
    bad = [row for row in rows if not good(row)]
    print(f"{len(rows)} cases, {len(bad)} of them beyond 3 % and 64 MB")


if __name__ == "__main__":
    main()
