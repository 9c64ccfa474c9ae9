"""How a model serves many requests at once: what ``Model.load(engine=...)`` takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ernie_accel.errors import ArgumentError

__all__ = ["EngineOptions", "Speculation"]

Speculation = Literal["off", "lookup", "mtp"]
"""``"lookup"`` guesses the next tokens from earlier places of the text that read the same, ``"mtp"`` with the layer for
multi-token prediction that the 21B and 300B checkpoints have."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings of the engine that batches requests. None of them changes a result.

    Attributes:
        prefix_cache: Keep the KV cache of ended requests while memory allows, so that a prompt with the same beginning
            (a system prompt, a conversation) is not computed again.
        speculation: Guess tokens and check several in one step: ``"off"``, ``"lookup"``, or ``"mtp"``, which takes
            memory for the weights of a layer more, and for hidden states beside the KV cache.
        queue_size: Most requests that wait for their start; beyond it ``generate`` waits and ``submit(block=False)``
            raises QueueFullError.
        step_tokens: Most tokens of one step, all requests together. None: 512, or what the backend allows.
        latency_target: Seconds between two tokens of a request that prompts of others may not exceed; None lets prompts
            take as much of each step as gives the highest throughput.
    """

    prefix_cache: bool = True
    speculation: Speculation = "off"
    queue_size: int = 1024
    step_tokens: int | None = None
    latency_target: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prefix_cache, bool):
            raise ArgumentError(f"prefix_cache={self.prefix_cache!r}: must be True or False")
        if self.speculation not in get_args(Speculation):
            allowed = ", ".join(map(repr, get_args(Speculation)))
            raise ArgumentError(f"speculation={self.speculation!r}: must be one of {allowed}")
        _check_count("queue_size", self.queue_size)
        if self.step_tokens is not None:
            _check_count("step_tokens", self.step_tokens)
        target = self.latency_target
        if target is not None and not (_is_number(target) and 0 < target < math.inf):
            raise ArgumentError(f"latency_target={target!r}: must be None or a number of seconds above 0")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{name}={value!r}: must be a whole number of at least 1")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
