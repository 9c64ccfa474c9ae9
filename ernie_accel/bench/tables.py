"""Tables of measurements as text, and the same as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ernie_accel.backends.base import StepProfile
from ernie_accel.bench.measure import Measured
from ernie_accel.bench.statistics import summarize

__all__ = ["columns", "plain", "profile_table", "speed_table"]

OUTSIDE = "outside the core"
"""What a profile calls the time between the core's steps: scheduling, text, Python."""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells: the first column to the left, the others to the right. The first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def speed_table(results: Sequence[Measured]) -> str:
    """One row a workload; the share of the read bandwidth where a profile gives the bytes."""
    heading = ["workload", "tokens/s", "lowest", "highest"]
    shares = any(result.bandwidth_share for result in results)
    rows = [heading + (["of the read bandwidth"] if shares else [])]
    for result in results:
        rate, share = result.rate, result.bandwidth_share
        row = [result.workload.name, f"{rate.median:.1f}", f"{rate.low:.1f}", f"{rate.high:.1f}"]
        rows.append(row + ([f"{share.median:.0%}" if share else ""] if shares else []))
    return columns(rows)


def profile_table(result: Measured) -> str:
    """One row for each part of a step: time, bytes, bytes a second, share of the read bandwidth.

    The bandwidth tells something about decoding alone: of a prompt, each weight that is read serves many tokens.
    """
    assert result.profile is not None
    decode = result.workload.measures == "decode"
    rows = [
        ["part", "ms a step", "of the step", "MB a step", "GB/s"]
        + (["of the read bandwidth"] if decode else [])
    ]
    ceiling = summarize(result.ceilings).median
    for part in _parts(result.profile, result.profile_seconds):
        speed = part["bytes"] / part["seconds"] if part["seconds"] else 0.0
        row = [part["name"], f"{part['seconds'] * 1e3:.3f}", f"{part['share']:.1%}"]
        row += [f"{part['bytes'] / 1e6:.1f}", f"{speed / 1e9:.1f}"] if part["bytes"] else ["", ""]
        rows.append(row + ([f"{speed / ceiling:.0%}" if part["bytes"] else ""] if decode else []))
    return columns(rows)


def plain(result: Measured) -> dict[str, Any]:
    """Everything as values that JSON knows."""
    share = result.bandwidth_share
    made: dict[str, Any] = {
        "name": result.workload.name,
        "workload": asdict(result.workload),
        "tokens_per_second": {**asdict(result.rate), "values": result.rates},
        "read_bandwidth": {**asdict(summarize(result.ceilings)), "values": result.ceilings},
    }
    if result.profile is not None:
        made["step_bytes"] = result.step_bytes
        made["bandwidth_share"] = asdict(share) if share else None
        made["profile"] = {
            "steps": result.profile.steps,
            "parts": list(_parts(result.profile, result.profile_seconds)),
        }
    return made


def _parts(profile: StepProfile, seconds: float) -> list[dict[str, Any]]:
    """Parts of a step and what lies outside all of them; seconds and bytes are of one step, on average."""
    steps = max(profile.steps, 1)
    rows = [(part.name, part.seconds, part.bytes) for part in profile.parts]
    rows.append((OUTSIDE, max(seconds - profile.seconds, 0.0), 0))
    rows.append(("all", max(seconds, profile.seconds), profile.bytes))
    return [
        {
            "name": name,
            "seconds": time / steps,
            "bytes": size / steps,
            "share": time / seconds if seconds else 0.0,
        }
        for name, time, size in rows
    ]
