"""A plan derived in words, with its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_accel.display import count, size

if TYPE_CHECKING:
    from ernie_accel.planner.plan import MemoryPlan

__all__ = ["explain"]


def explain(plan: MemoryPlan) -> str:
    """Return paragraphs on weights, division, KV cache, working memory, the verdict, and speed."""
    parts = (_weights(plan), _division(plan), _cache(plan), _rest(plan), _verdict(plan), _speed(plan))
    return "\n\n".join(part for part in parts if part)


def _weights(plan: MemoryPlan) -> str:
    total = plan.total()
    weights = {name: total[name] for name in plan.parameters if total.get(name)}
    each = ", ".join(
        f"{name} {count(plan.parameters[name])} in {size(value)}" for name, value in weights.items()
    )
    return (
        f"{plan.model} has {count(sum(plan.parameters.values()))} parameters. In {plan.precision} on "
        f"{plan.backend} its weights take {size(sum(weights.values()))} on all devices together: {each}."
    )


def _division(plan: MemoryPlan) -> str:
    degrees = plan.degrees
    if degrees.devices == 1:
        return ""
    heads = plan.setting.subject.config.num_key_value_heads
    held = max(1, heads // degrees.tensor)
    return (
        f"It is divided over {degrees.devices} devices ({degrees}). A device holds "
        f"{size(plan.device.weight_bytes)} of weights and {held} of {heads} key and value heads; routers and norms "
        "lie on every device."
    )


def _cache(plan: MemoryPlan) -> str:
    device = plan.device
    return (
        f"A token takes {device.kv_per_token:,} bytes of KV cache in {plan.kv_precision} on a device, in pages of "
        f"{device.page_tokens} tokens. {plan.sequences} x {plan.context:,} tokens take {size(device.kv_bytes)} there, "
        f"{size(device.kv_slack)} of it because pages are taken whole."
    )


def _rest(plan: MemoryPlan) -> str:
    device = plan.device
    exchanges = f", exchanges {size(device.communication)}" if device.communication else ""
    return (
        f"A step of {plan.step_tokens:,} tokens needs {size(device.activations)} of working memory; code and libraries "
        f"take {size(device.runtime)}{exchanges}."
    )


def _verdict(plan: MemoryPlan) -> str:
    words = [plan.constraint]
    if plan.max_context:
        words.append(
            f"The largest context for {plan.sequences} is {plan.max_context:,} tokens, for one sequence "
            f"{plan.longest:,}; of {plan.context:,} tokens there can be {plan.max_sequences:,}."
        )
    words += [f"To make it fit: {change}." for change in plan.changes]
    return " ".join(words)


def _speed(plan: MemoryPlan) -> str:
    speed, step = plan.speed, plan.speed.step
    apart = (
        f"partly at the same time, and attends to what came before in {1e3 * step.attention:.2f} ms"
        if step.norm
        else "at the same time"
    )
    words = [
        f"A decode step reads {'weights' if step.norm else 'weights and cache'} in {1e3 * step.memory:.2f} ms and "
        f"multiplies in {1e3 * step.arithmetic:.2f} ms, {apart}; exchanges take {1e3 * step.communication:.2f} ms and "
        f"what is lost between kernels and steps {1e3 * step.overhead:.2f} ms: {1e3 * step.seconds:.2f} ms, so "
        f"{speed.per_sequence:.1f} tokens/s for each sequence and {speed.decode:.1f} for all. Bandwidth and arithmetic "
        f"alone would allow {speed.decode_ceiling:.1f}.",
        *plan.warnings,
        *plan.assumptions,
    ]
    return " ".join(words)
