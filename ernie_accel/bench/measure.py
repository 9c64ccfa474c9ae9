"""Times a loaded model as a user drives it: calls of the public API, several prompts at once for a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ernie_accel.backends.base import StepProfile
from ernie_accel.bench.statistics import Summary, ratios, summarize
from ernie_accel.bench.workload import Workload, prompts
from ernie_accel.engine.profiling import Profiling
from ernie_accel.types import Completion, SamplingParams

__all__ = ["Decoding", "Measured", "Timed", "measure", "prefill"]


class Timed(Protocol):
    """The part of ``ernie_accel.Model`` that is used here."""

    def generate(self, prompt: list[list[int]], params: SamplingParams | None = None) -> list[Completion]:
        """Continue several prompts together."""
        ...

    def clear_cache(self) -> None:
        """Forget the beginnings that ended requests have left."""
        ...

    def profile(self) -> Profiling:
        """Count where time goes."""
        ...


def prefill(model: Timed, prompt: Sequence[int]) -> int:
    """Read a prompt and return the most probable next token."""
    model.clear_cache()  # or the second time would read nothing
    (done,) = model.generate([list(prompt)], _greedy(1))
    return done.token_ids[0]


class Decoding:
    """Several sequences past their prompts, which go on together, one token each a step.

    Between two calls of ``advance`` nothing is computed: what was read and written stays in the KV cache, and the next
    call goes on from there.

    Args:
        model: What computes. It keeps the KV cache of ended requests.
        prompts: Token ids, one list a sequence. They are read here.
    """

    def __init__(self, model: Timed, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self.texts = [list(prompt) for prompt in prompts]
        model.clear_cache()
        self.advance(1)

    def advance(self, steps: int) -> None:
        """Give every sequence that many tokens."""
        for text, done in zip(self.texts, self._model.generate(self.texts, _greedy(steps)), strict=True):
            text.extend(done.token_ids)

    def close(self) -> None:
        """Give the sequences' memory back."""
        self._model.clear_cache()


@dataclass
class Measured:
    """What one workload gave.

    Attributes:
        workload: What was measured.
        rates: Tokens per second, one value a round, all sequences together.
        ceilings: Read bandwidth, bytes a second, measured once a round.
        profile: Of one more round; None unless asked for.
        profile_seconds: What that round took, from call to result.
    """

    workload: Workload
    rates: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    profile: StepProfile | None = None
    profile_seconds: float = 0.0

    @property
    def rate(self) -> Summary:
        """Tokens per second."""
        return summarize(self.rates)

    @property
    def step_bytes(self) -> float | None:
        """Bytes of weights and KV cache that a step had to read; None without a profile."""
        return self.profile.bytes / self.profile.steps if self.profile and self.profile.steps else None

    @property
    def bandwidth_share(self) -> Summary | None:
        """For decoding: bytes read by bytes that could have been; None for a prompt, and without a profile."""
        if self.step_bytes is None or self.workload.measures != "decode":
            return None
        used = [self.step_bytes * rate / self.workload.batch for rate in self.rates]
        return summarize(ratios(used, self.ceilings))


def measure(
    model: Timed,
    workload: Workload,
    vocab_size: int,
    rounds: int,
    ceiling: Callable[[], float],
    profile: bool,
) -> Measured:
    """Run a workload once to warm up, then ``rounds`` times, and with ``profile`` once more.

    Args:
        model: What computes.
        workload: What to run.
        vocab_size: Prompts are ids below this.
        rounds: At least 1.
        ceiling: Measures the read bandwidth, bytes a second; called once a round.
        profile: Whether the backend tells where its time goes.
    """
    made = Measured(workload)
    with _round(model, workload, vocab_size) as run:
        run()
        for _ in range(rounds):
            made.rates.append(workload.rate(run()))
            made.ceilings.append(ceiling())
        if profile:
            with model.profile() as counted:
                made.profile_seconds = run()
            made.profile = counted.result
    return made


@contextmanager
def _round(model: Timed, workload: Workload, vocab_size: int) -> Iterator[Callable[[], float]]:
    """Give a function that runs the workload once and returns the seconds."""
    given = prompts(workload, vocab_size)
    if workload.measures == "prefill":
        yield lambda: _seconds(lambda: prefill(model, given[0]))
        return
    decoding = Decoding(model, given)
    try:
        yield lambda: _seconds(lambda: decoding.advance(workload.steps))
    finally:
        decoding.close()


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
