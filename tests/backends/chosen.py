"""Which conformance cases are not put to every variant of what is one Runner over several executors."""

from __future__ import annotations

from ernie_accel.testing.conformance import Case, cases

REFUSED_BY_THE_RUNNER = {
    *("bookkeeping", "sequence_limit", "context_limit", "step_limit"),
    *("arguments", "lengths", "unsupported"),
}
"""What these checks see, the Runner counts and refuses before it asks its executor."""


def of_an_executor() -> list[Case]:
    """Return the cases that depend on what computes."""
    return [case for case in cases() if str(case).rsplit("-", 1)[0] not in REFUSED_BY_THE_RUNNER]
