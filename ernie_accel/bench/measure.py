"""Times a loaded model as a user drives it: streams of the public API, several at once for a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ernie_accel.engine.scheduler import TOKENS_PER_STEP

if TYPE_CHECKING:
    from ernie_accel.engine.stream import TokenStream
    from ernie_accel.model import Model

__all__ = ["Decoding", "prefill"]


def prefill(model: Model, prompt: Sequence[int]) -> int:
    """Read a prompt and return the most probable next token."""
    with model.stream(prompt, max_tokens=1, temperature=0, ignore_eos=True) as stream:
        return next(stream).token_ids[0]


class Decoding:
    """Several sequences past their prompts, which go on together, one token each a step.

    Args:
        model: What computes.
        prompts: Token ids, one list a sequence. They are read here.
        steps: Largest number of tokens that will be asked for.
    """

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], steps: int) -> None:
        total = sum(map(len, prompts))
        # Those whose prompt was read first write while the others' are read.
        lead = 2 * -(-total // max(1, TOKENS_PER_STEP - len(prompts))) + len(prompts)
        self._streams: list[TokenStream] = [
            model.stream(prompt, max_tokens=steps + lead + 1, temperature=0, ignore_eos=True) for prompt in prompts
        ]
        for stream in self._streams:
            next(stream)

    def advance(self, steps: int) -> float:
        """Give every sequence that many tokens; return the seconds it took."""
        last = self._streams[-1]
        begin = time.perf_counter()
        for _ in range(steps):
            next(last)
        return time.perf_counter() - begin

    def close(self) -> None:
        """Give the sequences' memory back."""
        for stream in self._streams:
            stream.cancel()
