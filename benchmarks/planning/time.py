"""How long a plan takes: 300B-A47B from its name, from a config.json, and with everything that is printed of it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ernie_accel as ea
from ernie_accel.architecture import published_config
from ernie_accel.bench.statistics import summarize

ROUNDS = 15


def milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(published_config("300B-A47B").to_dict()), encoding="utf-8")
        actions: dict[str, Callable[[], object]] = {
            "300B-A47B on 8xH800": lambda: ea.plan("300B-A47B", devices="8xH800"),
            "the same from config.json": lambda: ea.plan(config, devices="8xH800"),
            "300B-A47B on 4xA100 in bf16, which does not fit": lambda: ea.plan(
                "300B-A47B", devices="4xA100", precision="bf16"
            ),
            "300B-A47B on this cpu in int4": lambda: ea.plan("300B-A47B", devices="cpu", precision="int4"),
            "advice for accuracy on 8xH800": lambda: ea.advise("300B-A47B", "accuracy", devices="8xH800"),
        }
        for name, action in actions.items():
            first = milliseconds(action)
            times = summarize([milliseconds(action) for _ in range(ROUNDS)])
            print(
                f"{name:<48} {times.median:6.1f} ms  ({times.low:.1f} to {times.high:.1f}; first {first:.1f})"
            )
    print(f"medians of {ROUNDS} rounds")


if __name__ == "__main__":
    main()
