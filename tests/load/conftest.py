from __future__ import annotations

import pytest

from ernie_accel.engine.costs import StepCosts


@pytest.fixture(autouse=True)
def drafts_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may guess does, as much as possible, whatever steps take on this machine."""
    monkeypatch.setattr(StepCosts, "relative", lambda self, rows: 1.0)
    monkeypatch.setattr("ernie_accel.engine.speculation.MARGIN", 0.0)
