"""Plans beside what really happens: a fresh process loads a model, fills its context and is measured.

``verify`` starts ``python -m ernie_accel.verification``, whose one argument says what to load, and reads the JSON that
it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ernie_accel.display import html_table, size, text_table
from ernie_accel.errors import BackendError, UnsupportedError

if TYPE_CHECKING:
    from ernie_accel.planner.plan import MemoryPlan

__all__ = ["Verification", "verify"]

_NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification:
    """What ``verify`` returns; prints as a table.

    Attributes:
        plan: What was predicted.
        loading: Peak of anonymous memory while loading, as growth of a fresh process, bytes.
        running: ... while all sequences filled their context.
        mapped: Pages of mapped files that were in memory, bytes; another process may share them.
        decode: Tokens per second of all sequences together.
        prefill: Tokens per second of a prompt.
    """

    plan: MemoryPlan
    loading: int
    running: int
    mapped: int
    decode: float
    prefill: float

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of everything that is shown."""
        plan = self.plan
        pairs: list[tuple[str, float, float, Callable[[float], str]]] = [
            ("loading", plan.loading or 0, self.loading, _size),
            ("running", plan.peak, self.running, _size),
            ("decode", plan.speed.decode, self.decode, _rate),
            ("prompts", plan.speed.prefill, self.prefill, _rate),
        ]
        rows = [("model", f"{plan.model} in {plan.precision}, {plan.sequences} x {plan.context:,} tokens")]
        for name, predicted, real, write in pairs:
            error = (predicted - real) / real if real else 0.0
            rows.append((name, f"predicted {write(predicted):>16}   real {write(real):>16}   {error:+.1%}"))
        if self.mapped:
            rows.append(("mapped file", f"{size(self.mapped)} in memory besides"))
        return rows

    def __repr__(self) -> str:
        return f"Verification\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return html_table("Verification", self.rows())


def verify(plan: MemoryPlan, source: str) -> Verification:
    """Load what was planned in a fresh process, let every sequence fill its context by real requests, and measure.

    Args:
        plan: For a cpu.
        source: A directory, a hub id, or a published shape, which is loaded with random weights.

    Raises:
        UnsupportedError: The plan is for other devices.
        BackendError: The process failed; says why.
    """
    if not plan.setting.on_cpu:
        raise UnsupportedError(
            f"{plan.devices} cannot be verified here: plan for devices='cpu', or ask the server on them"
        )
    options = plan.setting.options
    if plan.degrees.devices > 1:
        raise UnsupportedError(
            f"a model in {plan.degrees.devices} processes cannot be verified: only one process is measured here"
        )
    if options.backend_options is not None:
        raise UnsupportedError(
            f"backend_options={options.backend_options!r}: cannot be handed to the process that is measured; plan "
            "without them"
        )
    job = {
        "source": source,
        "backend": plan.backend,
        "precision": plan.precision,
        "kv_precision": plan.kv_precision,
        "threads": options.threads,
        "max_context": plan.context,
        "max_batch": plan.sequences,
        "memory_limit": options.memory_limit,
        "step_tokens": plan.step_tokens,
        "mtp": plan.mtp,
    }
    command = [sys.executable, "-m", __name__, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise BackendError(f"{source} could not be verified: {last}")
    return Verification(plan=plan, **json.loads(done.stdout.splitlines()[-1]))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Load and run what a job says, in this process; return bytes and rates."""
    from ernie_accel.bench.memory import MemoryWatch, resident
    from ernie_accel.model import Model

    job |= _settings(job["backend"], job.pop("step_tokens"), job.pop("mtp"))
    before = resident()
    with MemoryWatch(before) as loading:
        model = Model.load(_source(job.pop("source")), progress=False, **job)
    with model, MemoryWatch(before) as running:
        assert model.config is not None, "it is a checkpoint of ours"
        context, sequences = model.max_context, job["max_batch"]
        prompts = _prompts(model.config.vocab_size, context, sequences)
        begin = time.perf_counter()
        model.generate(prompts[0], max_tokens=1, temperature=0, ignore_eos=True)
        read = time.perf_counter() - begin
        first = model.generate(prompts, max_tokens=1, temperature=0, ignore_eos=True)
        texts = [
            [*prompt, *done.token_ids] for prompt, done in zip(prompts, first, strict=True)
        ]  # beginnings that are in the cache now
        begin = time.perf_counter()
        rest = context - len(texts[0])
        model.generate(texts, max_tokens=rest, temperature=0, ignore_eos=True)
        decoding = time.perf_counter() - begin
    return {
        "loading": loading.peak,
        "running": running.peak,
        "mapped": max(loading.mapped, running.mapped),
        "prefill": len(prompts[0]) / read,
        "decode": sequences * rest / decoding,
    }


def _settings(backend: str, step_tokens: int, mtp: bool) -> dict[str, Any]:
    """What else ``Model.load`` is to be told: the size of steps, where the backend lets one choose, and drafts."""
    from ernie_accel.backends import registry
    from ernie_accel.engine.options import EngineOptions

    own: Any = getattr(registry.get(backend), "options_type", object)()
    chosen = step_tokens > 0 and hasattr(own, "max_step_tokens")
    return {
        "backend_options": replace(own, max_step_tokens=step_tokens) if chosen else None,
        "engine": EngineOptions(speculation="mtp") if mtp else None,
    }


def _source(name: str) -> Any:
    """A published shape stands for random weights of it; whatever else is a path or a hub id."""
    from pathlib import Path

    from ernie_accel.architecture import PUBLISHED
    from ernie_accel.testing import synthetic

    return synthetic(name) if name in PUBLISHED and not Path(name).exists() else name


def _prompts(vocab: int, context: int, count: int) -> list[list[int]]:
    """Different ids for each sequence, so that none begins like another."""
    length = max(1, context - _NEW_TOKENS)
    return [[(7 * place + 13 * index + 3) % vocab for place in range(length)] for index in range(count)]


def _size(value: float) -> str:
    return size(int(value))


def _rate(value: float) -> str:
    return f"{value:,.1f} tokens/s"


def main(arguments: Sequence[str]) -> None:
    """Measure the job that the one argument holds as JSON."""
    print(json.dumps(measure(json.loads(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
