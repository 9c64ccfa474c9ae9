"""What a backend finds before anything heavy starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ernie_accel.backends.base import LoadOptions
from ernie_accel.display import text_table

if TYPE_CHECKING:
    from pathlib import Path

    from ernie_accel.architecture.config import ModelConfig

__all__ = ["Finding", "Preflight", "PreflightBackend"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        ok: Whether it is as it must be; None where that cannot be said from here.
        found: What was found, one sentence.
        next_step: What to do if it is not as it must be.
    """

    name: str
    ok: bool | None
    found: str
    next_step: str = ""


@dataclass(frozen=True, repr=False)
class Preflight:
    """All findings of one backend; prints as a table, in notebooks too."""

    backend: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that must prevent a start."""
        return all(finding.ok is not False for finding in self.findings)

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What must prevent it."""
        return tuple(finding for finding in self.findings if finding.ok is False)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def sentence(self) -> str:
        """Say what prevents a start and what to do about each; "" if nothing does."""
        return " ".join(f"{f.name}: {f.found} {f.next_step}".rstrip() for f in self.faults)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"backend": self.backend, "ok": self.ok, "findings": [vars(f) for f in self.findings]}

    def __repr__(self) -> str:
        return text_table(
            (f.name, f"{_MARK[f.ok]:<4} {f.found}" + (f"\n     {f.next_step}" if f.next_step else ""))
            for f in self.findings
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(f.name)}</th><td>{_MARK[f.ok]}</td><td>{escape(f.found)}</td>"
            f"<td>{escape(f.next_step)}</td></tr>"
            for f in self.findings
        )
        return f"<strong>{escape(self.backend)}</strong><table>{rows}</table>"


_MARK = {True: "yes", False: "no", None: "?"}


@runtime_checkable
class PreflightBackend(Protocol):
    """What a Backend has besides if its start is long enough that it looks first."""

    name: str

    def preflight(
        self, directory: Path | None, config: ModelConfig | None, options: LoadOptions
    ) -> Preflight:
        """Look at everything that a start needs; without a directory, at the machine alone. Starts nothing."""
        ...
