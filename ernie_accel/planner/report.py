"""A plan for people: a table as text, and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_accel.display import count, html_table, size, text_table

if TYPE_CHECKING:
    from ernie_accel.planner.plan import MemoryPlan

__all__ = ["html", "rows", "text"]

Row = tuple[str, str]


def text(plan: MemoryPlan) -> str:
    """Return the whole plan as lines of text."""
    return f"MemoryPlan\n{text_table(rows(plan))}"


def html(plan: MemoryPlan) -> str:
    """Return the whole plan as HTML."""
    return html_table("MemoryPlan", rows(plan))


def rows(plan: MemoryPlan) -> list[Row]:
    """Return name and value of everything that is shown."""
    return [
        *_subject(plan),
        *_memory(plan),
        *_limits(plan),
        *_speed(plan),
        *([("warnings", "\n".join(plan.warnings))] if plan.warnings else []),
        ("assumptions", "\n".join(plan.assumptions)),
    ]


def _subject(plan: MemoryPlan) -> list[Row]:
    return [
        ("model", f"{plan.model}, {count(sum(plan.parameters.values()))} parameters"),
        ("backend", f"{plan.backend}, weights {plan.precision}, KV cache {plan.kv_precision}"),
        ("devices", f"{plan.devices}: {plan.degrees}"),
        (
            "load",
            f"{plan.sequences} x {plan.context:,} tokens, prompts in chunks of {plan.step_tokens:,}",
        ),
        ("fits", "yes" if plan.fits else "no"),
    ]


def _memory(plan: MemoryPlan) -> list[Row]:
    """Bytes of the fullest device, and of all together."""
    device = plan.device
    where = "a device" if plan.degrees.devices > 1 else "memory"
    total = plan.total()
    lines = [f"{name:<16}{size(value):>12}" for name, value in device.parts().items()]
    lines.append(f"{'required':<16}{size(device.required):>12}")
    lines.append(f"{'available':<16}{size(device.usable):>12}")
    left = device.headroom
    lines.append(f"{'left' if left >= 0 else 'missing':<16}{size(abs(left)):>12}")
    found = [(where, "\n".join(lines))]
    if plan.degrees.devices > 1:
        found.append(("all devices", size(sum(total.values()))))
    if plan.loading is not None:
        mapped = f", {size(plan.mapped)} of a mapped file beside it" if plan.mapped else ""
        found.append(("loading takes", f"{size(plan.loading)} at its peak{mapped}"))
    return found


def _limits(plan: MemoryPlan) -> list[Row]:
    return [
        ("constraint", plan.constraint),
        (
            "largest",
            f"context {plan.max_context:,} for {plan.sequences}, {plan.longest:,} for one; "
            f"{plan.max_sequences:,} sequences of {plan.context:,}",
        ),
        ("to make it fit", "\n".join(map(str, plan.changes))),
    ][: 3 if plan.changes else 2]


def _speed(plan: MemoryPlan) -> list[Row]:
    speed = plan.speed
    decode = f"{_rate(speed.decode)} tokens/s to expect, at most {_rate(speed.decode_ceiling)}"
    if plan.sequences > 1:
        decode += f"; {_rate(speed.per_sequence)} for each sequence"
    return [
        ("decode", f"{decode}; limited by {speed.step.bound}"),
        (
            "prompts",
            f"{_rate(speed.prefill)} tokens/s to expect, at most {_rate(speed.prefill_ceiling)}",
        ),
    ]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
