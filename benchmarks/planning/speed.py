"""Expected beside measured tokens per second on this machine's processors.

Bandwidth and arithmetic are measured right before and right after every round, in the process that runs it, since on a
machine that others share they move within minutes; the plan of a round is for a machine with what was found there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ernie_accel as ea
from benchmarks.end_to_end.formats.our_directory import our_directory
from ernie_accel.bench.machine import describe, dot_product_peak, read_bandwidth
from ernie_accel.bench.measure import Decoding, prefill
from ernie_accel.bench.workload import Workload, prompts
from ernie_accel.planner.devices import Device, machine

RESULT = Path("benchmarks/results/plan-speed.json")
THREADS = 2
WORKLOADS = (
    Workload(measures="decode", context=128, steps=32),
    Workload(measures="decode", context=4096, steps=16),
    Workload(measures="decode", context=128, batch=16, steps=16),
    Workload(measures="decode", context=2048, batch=4, steps=8),
    Workload(measures="prefill", context=128),
    Workload(measures="prefill", context=512),
    Workload(measures="prefill", context=2048),
)
NATIVE = ("fp32", "bf16", "int8", "int4")


def source_of(shape: str, backend: str, precision: str) -> Any:
    """A quantised directory where users have one, else random weights."""
    if backend == "native" and precision in ("int8", "int4"):
        return our_directory(shape, precision)
    return ea.testing.synthetic(shape)


def measured(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Load a model in this process and run the workloads of a job; a row for each, with every round."""
    chosen = [Workload(**workload) for workload in job["workloads"]]
    backend, precision = job["backend"], job["precision"]
    native = backend == "native"
    quantised = native and precision in ("int8", "int4")
    rows = []
    with ea.Model.load(
        source_of(job["shape"], backend, precision),
        backend=backend,
        precision="auto" if quantised else precision,
        threads=THREADS,
        max_batch=max(workload.batch for workload in chosen),
        tensor_parallel=job["ranks"],
        backend_options=ea.NativeOptions(resident=True) if quantised else None,
        progress=False,
    ) as model:
        assert model.config is not None
        for workload in chosen:
            rounds = list(_rounds(model, workload, job["rounds"]))
            row = {name: job[name] for name in ("shape", "backend", "precision", "ranks")}
            rows.append({**row, "workload": asdict(workload), "rounds": rounds})
            if native and job["profile"]:
                rows[-1]["profile"] = _profile(model, workload)
    return rows


def _rounds(model: ea.Model, workload: Workload, rounds: int) -> Iterator[dict[str, float]]:
    """Seconds of each round, with what the machine gave before and after it."""
    import time

    assert model.config is not None
    given = prompts(workload, model.config.vocab_size)
    decoding = Decoding(model, given) if workload.measures == "decode" else None
    for number in range(rounds + 1):
        before = _machine()
        begin = time.perf_counter()
        if decoding is None:
            prefill(model, given[0])
        else:
            decoding.advance(workload.steps)
        seconds = time.perf_counter() - begin
        after = _machine()
        if number:  # the first one warms up
            bandwidth, peak = ((a + b) / 2 for a, b in zip(before, after, strict=True))
            yield {"seconds": seconds, "bandwidth": bandwidth, "peak": peak}
    if decoding is not None:
        decoding.close()


def _machine() -> tuple[float, float]:
    return read_bandwidth(THREADS), dot_product_peak(THREADS)


def _profile(model: ea.Model, workload: Workload) -> dict[str, Any]:
    assert model.config is not None
    given = prompts(workload, model.config.vocab_size)
    if workload.measures == "prefill":
        with model.profile() as counted:
            prefill(model, given[0])
    else:
        decoding = Decoding(model, given)
        with model.profile() as counted:
            decoding.advance(workload.steps)
        decoding.close()
    parts = {part.name: [part.seconds, part.bytes] for part in counted.result.parts}
    return {"steps": counted.result.steps, "parts": parts}


def planned(row: dict[str, Any], found: dict[str, float]) -> float:
    """Tokens per second to expect of a round, on a machine with what was measured around it."""
    workload = Workload(**row["workload"])
    here = machine(THREADS)
    tera = found["peak"] / 1e12 or here.tera8
    device = Device(
        name="cpu",
        kind="cpu",
        memory=here.memory,
        bandwidth=found["bandwidth"],
        tera16=tera / 2,
        tera8=tera,
        link=here.link,
        per_node=here.per_node,
        measured=True,
    )
    decodes = workload.measures == "decode"
    plan = ea.plan(
        row["shape"],
        devices=device,
        backend=row["backend"],
        precision=row["precision"],
        max_context=workload.context + (workload.steps if decodes else 0),
        max_batch=workload.batch,
        step_tokens=None if decodes else min(workload.context, 512) if row["backend"] == "native" else None,
        tensor_parallel=row["ranks"],
        threads=THREADS,
    )
    return plan.speed.decode if decodes else plan.speed.prefill


def errors(row: dict[str, Any]) -> tuple[float, float, float]:
    """Medians over rounds of expected and measured tokens per second, and of the error."""
    workload = Workload(**row["workload"])
    real = [workload.rate(found["seconds"]) for found in row["rounds"]]
    said = [planned(row, found) for found in row["rounds"]]
    error = statistics.median(a / b - 1 for a, b in zip(said, real, strict=True))
    return statistics.median(said), statistics.median(real), error


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    said, real, error = errors(row)
    workload = Workload(**row["workload"])
    found = [statistics.median(found[name] for found in row["rounds"]) for name in ("bandwidth", "peak")]
    ranks = f" in {row['ranks']}" if row["ranks"] > 1 else ""
    return (
        f"{row['shape']:<8} {row['backend'] + ranks:<16} {row['precision']:<5} {workload.name:<15} "
        f"expected {said:8.1f} measured {real:8.1f} tokens/s {error:+6.0%}   "
        f"{found[0] / 1e9:.0f} GB/s, {found[1] / 1e12:.2f} TOPS"
    )


def child(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planning.speed", "--job", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def save(rows: Sequence[dict[str, Any]]) -> None:
    """Keep results beside those of other models."""
    kept = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []

    def identity(row: dict[str, Any]) -> str:
        return json.dumps([row[name] for name in ("shape", "backend", "precision", "ranks", "workload")])

    table = {identity(row): row for row in [*kept, *rows]}
    text = json.dumps({"machine": describe(), "rows": list(table.values())}, indent=1)
    RESULT.write_text(text + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench plan speed", description=__doc__)
    parser.add_argument("--shape", default="0.3B", help="a published shape (default: 0.3B)")
    parser.add_argument("--backend", default="native", help="native, paddle or onnxruntime")
    parser.add_argument(
        "--precision", nargs="*", default=NATIVE, help="of the weights (default: all of native)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the model, with paddle")
    parser.add_argument("--only", nargs="*", help="workloads by name, such as decode-128 or prefill-512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="keep where the time of a step went, too")
    parser.add_argument(
        "--again", action="store_true", help="measure nothing, plan anew for what was measured"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    if chosen.job:
        print(json.dumps(measured(json.loads(chosen.job))))
        return
    if chosen.again:
        for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]:
            print(line(row))
        return
    wanted = [asdict(w) for w in WORKLOADS if not chosen.only or w.name in chosen.only]
    for precision in chosen.precision:
        job = {
            "shape": chosen.shape,
            "backend": chosen.backend,
            "precision": precision,
            "ranks": chosen.ranks,
            "workloads": wanted,
            "rounds": chosen.rounds,
            "profile": chosen.profile,
        }
        rows = child(job)
        for row in rows:
            print(line(row), flush=True)
        if not chosen.no_save:
            save(rows)


if __name__ == "__main__":
    main()
