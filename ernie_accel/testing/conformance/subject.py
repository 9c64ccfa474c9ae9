"""What the conformance checks have in common: the backend under test, its tolerance, and how to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig
from ernie_accel.backends.base import Backend, LoadOptions, Output, Runner, Step, StepResult
from ernie_accel.backends.reference import ReferenceBackend
from ernie_accel.errors import ErnieAccelError
from ernie_accel.testing.synthetic import synthetic

__all__ = ["Subject", "Tolerance", "append", "require", "require_error", "same"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the logits of a backend may lie from those of ``reference``; None leaves a measure out.

    Attributes:
        absolute: Largest difference of any two numbers.
        relative: Root mean square of the differences by that of the reference.
        argmax: Smallest share of rows that agree on the most probable token. Where the reference's best tokens lie
            within three times the typical error of each other, any of them will do: random models often have such rows.
    """

    absolute: float | None = None
    relative: float | None = None
    argmax: float = 0.0

    def check(self, actual: Array, expected: Array, what: str) -> None:
        """Raise AssertionError unless the two agree."""
        require(actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}")
        require(actual.dtype == np.float32, f"{what}: dtype {actual.dtype}, expected float32")
        require(bool(np.isfinite(actual).all()), f"{what}: holds NaN or infinity")
        worst, relative, argmax = differences(actual, expected)
        found = f"largest difference {worst:.3g}, relative {relative:.3g}, argmax agreement {argmax:.3f}"
        require(self.absolute is None or worst <= self.absolute, f"{what}: {found}; allowed {self}")
        require(self.relative is None or relative <= self.relative, f"{what}: {found}; allowed {self}")
        require(argmax >= self.argmax, f"{what}: {found}; allowed {self}")


def differences(actual: Array, expected: Array) -> tuple[float, float, float]:
    """Return largest difference, relative error (RMS by RMS) and share of rows that agree on the best token."""
    delta = actual.astype(np.float64) - expected
    error = np.sqrt(np.mean(delta**2))
    relative = error / np.sqrt(np.mean(expected.astype(np.float64) ** 2))
    found = np.take_along_axis(expected, actual.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    argmax = np.mean(found >= expected.max(axis=-1) - 3 * error)
    return float(np.abs(delta).max()), float(relative), float(argmax)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backend under test.

    Attributes:
        backend: What is tested.
        options: How its runners are opened; checks change max_batch, max_context and memory_limit.
        tolerance: Against ``reference``; None for a backend that does not compute the model (``mock``), which is then
            held to everything but the numbers.
        seed: Of weights and of all random choices.
    """

    backend: Backend
    options: LoadOptions = field(default_factory=LoadOptions)
    tolerance: Tolerance | None = field(default_factory=lambda: Tolerance(absolute=1e-4))
    seed: int = 0
    _known: dict[tuple[ModelConfig, bool], frozenset[str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def capabilities(self, config: ModelConfig, *, multi_token: bool = False) -> frozenset[str]:
        """Return what runners of a model can do; the first call opens one, which may take a while."""
        key = (config, multi_token)
        if key not in self._known:
            with self.runner(config, multi_token=multi_token) as runner:
                self._known[key] = runner.info.capabilities
        return self._known[key]

    @contextmanager
    def runner(self, config: ModelConfig, **overrides: Any) -> Iterator[Runner]:
        """Open a runner on random weights; ``overrides`` are fields of LoadOptions."""
        with synthetic(config, seed=self.seed) as checkpoint:
            runner = self.backend.open(checkpoint, replace(self.options, **overrides))
        try:
            yield runner
        finally:
            runner.close()

    def expected(self, config: ModelConfig, ids: Sequence[int], output: Output = "logits") -> Array:
        """Return the rows that ``reference`` gives for all positions of ``ids``."""
        return _expected(config, self.seed, tuple(ids), output)

    def rng(self) -> np.random.Generator:
        """Return a generator that gives each check the same numbers in each run."""
        return np.random.default_rng(self.seed)

    def ids(self, config: ModelConfig, count: int, stream: int = 0) -> list[int]:
        """Return random ids of the whole vocabulary."""
        rng = np.random.default_rng((self.seed, stream))
        return [int(i) for i in rng.integers(0, config.vocab_size, count)]

    def agree(self, runner: Runner, actual: Array, expected: Array, what: str) -> None:
        """Compare two answers of the same runner: bit for bit if it is ``invariant``, else within the tolerance."""
        if "invariant" in runner.info.capabilities or self.tolerance is None:
            require(same(actual, expected), f"{what}: an invariant runner must give identical bits")
        else:
            self.tolerance.check(actual, expected, what)


@lru_cache(maxsize=32)
def _expected(config: ModelConfig, seed: int, ids: tuple[int, ...], output: Output) -> Array:
    """What ``reference`` gives; kept, as every backend under test is compared with the same."""
    with Subject(backend=ReferenceBackend(), seed=seed).runner(config) as runner:
        rows = append(runner, runner.open(), ids, output=output)
    rows.flags.writeable = False
    return rows


def append(
    runner: Runner, seq: int, ids: Sequence[int], *, rows: int | None = None, output: Output = "logits"
) -> Array:
    """Append ids in as few steps as the runner allows; return the last ``rows`` rows (None: all)."""
    size = runner.info.max_step_tokens
    parts = [list(ids[i : i + size]) for i in range(0, len(ids), size)]
    answers = [answer(runner.forward([Step(seq, part, len(part), output)])[0], output) for part in parts]
    every = np.concatenate(answers)
    return every if rows is None else every[len(every) - rows :]


def answer(result: StepResult, output: Output) -> Array:
    """Return the array of a result, and check that nothing else is set."""
    found = result.logits if output == "logits" else result.hidden
    other = result.hidden if output == "logits" else result.logits
    require(found is not None, f"the step asked for {output} and got none")
    require(other is None and result.token_ids is None, f"the step asked for {output} alone and got more")
    assert found is not None
    return found


def same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bits."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def require(condition: bool, message: str) -> None:
    """Raise AssertionError, with ``python -O`` too."""
    if not condition:
        raise AssertionError(message)


@contextmanager
def require_error(kind: type[ErnieAccelError], what: str) -> Iterator[None]:
    """Check that the block raises an error of that kind, with a message."""
    try:
        yield
    except kind as error:
        require(len(str(error)) > 10, f"{what}: {kind.__name__} has no message")
        return
    except ErnieAccelError as error:
        raise AssertionError(f"{what}: raised {type(error).__name__}, expected {kind.__name__}") from error
    raise AssertionError(f"{what}: raised nothing, expected {kind.__name__}")
