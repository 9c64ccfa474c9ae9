"""What an adapter is: a module with ``load(setup)`` that returns an ``Engine``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Ids = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every engine is told before it loads.

    Attributes:
        shape: Published shape that ``ernie_accel.testing.synthetic`` knows.
        precision: Of the weights, as the engine calls it.
        kv: Of the KV cache, as the engine calls it; "" leaves it to the adapter.
        resident: Whether weights that could be mapped are copied into memory of the process.
        backend: Ours: what computes.
        threads: Threads that compute.
        context: Largest number of tokens in one sequence.
        batch: Largest number of sequences at once.
    """

    shape: str
    precision: str
    kv: str = ""
    resident: bool = False
    backend: str = "native"
    threads: int
    context: int
    batch: int


class Engine(Protocol):
    """One loaded model. Nothing is timed in here: the worker times the calls.

    Tokens are chosen greedily and the vocabulary head is computed for the last position only.
    """

    def prefill(self, prompt: Ids) -> int:
        """Read a prompt into an empty cache and return the most probable next token."""
        ...

    def start(self, prompts: Sequence[Ids], steps: int) -> None:
        """Read these prompts into an empty cache, choose a token after each; ``steps`` at most follow."""
        ...

    def advance(self, steps: int) -> None:
        """Give every sequence that many tokens, all together, each token chosen from the step before."""
        ...

    def step_bytes(self) -> int | None:
        """Bytes of weights and KV cache that the next decoding step has to read; None where that is not known."""
        ...
