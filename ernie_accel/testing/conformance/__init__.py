"""The contract of ``ernie_accel.backends.base``, as checks that any backend can be put through.

With pytest::

    SUBJECT = Subject(backend=MyBackend())

    @pytest.mark.parametrize("case", cases(), ids=str)
    def test_conformance(case: Case) -> None:
        if reason := case.skip_reason(SUBJECT):
            pytest.skip(reason)
        case.run(SUBJECT)

or without: ``print(run_conformance(SUBJECT))``. The models are tiny and random; ``reference`` is
the judge. Engines, which work on whole requests, have a suite of their own: ``run_engine_conformance``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ernie_accel.architecture import ModelConfig
from ernie_accel.testing.conformance import drafts, limits, overlap, results
from ernie_accel.testing.conformance.engines import ENGINE_CHECKS, EngineSubject
from ernie_accel.testing.conformance.subject import Subject, Tolerance, differences
from ernie_accel.testing.tiny import tiny_config

__all__ = [
    "Case",
    "EngineSubject",
    "Report",
    "Subject",
    "Tolerance",
    "cases",
    "differences",
    "run_conformance",
    "run_engine_conformance",
]

Check = Callable[[Subject, ModelConfig], None]

_PARITY: tuple[Check, ...] = (results.check_logits, results.check_long_prompt, results.check_hidden)

_CHECKS: dict[Check, frozenset[str]] = {
    results.check_logits: frozenset(),
    results.check_long_prompt: frozenset(),
    results.check_hidden: frozenset({"hidden"}),
    results.check_rows: frozenset(),
    results.check_chunks: frozenset(),
    results.check_batch: frozenset(),
    results.check_outputs: frozenset({"hidden"}),
    results.check_fork: frozenset(),
    results.check_truncate: frozenset(),
    results.check_select: frozenset({"select"}),
    results.check_invariance: frozenset({"invariant"}),
    results.check_select_invariance: frozenset({"select", "invariant"}),
    limits.check_info: frozenset(),
    limits.check_bookkeeping: frozenset(),
    limits.check_no_leak: frozenset(),
    limits.check_sequence_limit: frozenset(),
    limits.check_context_limit: frozenset(),
    limits.check_cache_limit: frozenset(),
    limits.check_step_limit: frozenset(),
    limits.check_arguments: frozenset(),
    limits.check_lengths: frozenset(),
    limits.check_unsupported: frozenset(),
    limits.check_select_errors: frozenset({"select"}),
    limits.check_park: frozenset({"park"}),
    limits.check_close: frozenset(),
    drafts.check_drafts: frozenset({"draft"}),
    drafts.check_drafts_and_steps: frozenset({"draft"}),
    drafts.check_drafts_in_pieces: frozenset({"draft"}),
    drafts.check_drafts_after_forks: frozenset({"draft"}),
    drafts.check_drafts_in_a_batch: frozenset({"draft"}),
    drafts.check_draft_errors: frozenset({"draft"}),
    drafts.check_draft_memory: frozenset({"draft"}),
    overlap.check_start: frozenset({"overlap"}),
    overlap.check_late_select: frozenset({"overlap", "select"}),
    overlap.check_given_up: frozenset({"overlap"}),
    overlap.check_start_errors: frozenset({"overlap"}),
    overlap.check_start_memory: frozenset({"overlap"}),
    overlap.check_late_select_errors: frozenset({"overlap", "select"}),
    overlap.check_under_way: frozenset({"overlap"}),
}
"""Each check with the capabilities that it needs."""


@dataclass(frozen=True)
class Case:
    """One check on one model."""

    check: Check
    model: str
    config: ModelConfig
    needs: frozenset[str]

    def __str__(self) -> str:
        return f"{self.check.__name__.removeprefix('check_')}-{self.model}"

    def skip_reason(self, subject: Subject) -> str:
        """Say why the case does not apply to a backend; "" if it does."""
        if subject.tolerance is None and self.check in _PARITY:
            return "the backend does not compute the model"
        if not self.needs:
            return ""
        missing = self.needs - subject.capabilities(self.config, multi_token="draft" in self.needs)
        return f"the backend lacks the capability {', '.join(sorted(missing))}" if missing else ""

    def run(self, subject: Subject) -> None:
        """Raise AssertionError, saying what differs, if the backend fails."""
        self.check(subject, self.config)


@dataclass(frozen=True)
class Report:
    """Outcome of all cases: names passed, (name, reason) skipped, (name, message) failed."""

    passed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.passed)} passed, {len(self.skipped)} skipped, {len(self.failed)} failed"]
        lines += [f"FAILED {name}: {message}" for name, message in self.failed]
        return "\n".join(lines)


def models() -> dict[str, ModelConfig]:
    """Return the configurations: plain ones, and ones whose sizes are multiples of nothing."""
    long: dict[str, Any] = {"max_position_embeddings": 1024}
    odd: dict[str, Any] = {
        **long,
        "hidden_size": 72,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "vocab_size": 131,
    }
    odd_moe = {
        **odd,
        "moe_intermediate_size": 20,
        "moe_num_experts": 5,
        "moe_k": 3,
        "moe_num_shared_experts": 0,
    }
    return {
        "dense": tiny_config(**long),
        "moe": tiny_config(moe=True, **long),
        "dense-odd": tiny_config(**odd, intermediate_size=100, tie_word_embeddings=False),
        "moe-odd": tiny_config(moe=True, **odd_moe),
    }


def cases() -> list[Case]:
    """Return every check on every model.

    Results and overlap on all four models, the long prompt on two; limits on one; drafts on models that have them.
    """
    everywhere = [
        Case(check, model, config, needs)
        for check, needs in _CHECKS.items()
        if check.__module__ in (results.__name__, overlap.__name__)
        for model, config in models().items()
        if check is not results.check_long_prompt or model in ("dense", "moe")
    ]
    config = tiny_config(moe=True)
    once = [
        Case(check, "moe", config, needs)
        for check, needs in _CHECKS.items()
        if check.__module__ == limits.__name__
    ]
    drafted = [
        Case(check, model, replace(config, num_nextn_predict_layers=1), needs)
        for check, needs in _CHECKS.items()
        if check.__module__ == drafts.__name__
        for model, config in models().items()
    ]
    return everywhere + once + drafted


def run_conformance(subject: Subject) -> Report:
    """Put a backend through all cases."""
    passed, skipped, failed = [], [], []
    for case in cases():
        if reason := case.skip_reason(subject):
            skipped.append((str(case), reason))
            continue
        try:
            case.run(subject)
            passed.append(str(case))
        except Exception as error:  # whatever a third-party backend raises is its failure, not ours
            failed.append((str(case), f"{type(error).__name__}: {error}"))
    return Report(tuple(passed), tuple(skipped), tuple(failed))


def run_engine_conformance(subject: EngineSubject) -> Report:
    """Put an engine through all checks of ``engines.py``."""
    passed, failed = [], []
    for check in ENGINE_CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            check(subject)
            passed.append(name)
        except Exception as error:  # as above
            failed.append((name, f"{type(error).__name__}: {error}"))
    return Report(tuple(passed), (), tuple(failed))
