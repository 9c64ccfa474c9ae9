"""What this machine offers: ``doctor``."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ernie_accel import env, system
from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.preflight import Preflight, PreflightBackend
from ernie_accel.backends.registry import BackendTable
from ernie_accel.display import html_table, size, text_table
from ernie_accel.errors import BackendUnavailableError, ErnieAccelError
from ernie_accel.place import find
from ernie_accel.types import Precision

__all__ = ["Report", "doctor"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What ``doctor`` found; prints as a table, in notebooks too.

    Attributes:
        version, python, system: Versions of this library, of Python, and of the operating system.
        instruction_set: What the native backend uses; None if that cannot run.
        instruction_set_reason: Why that one; one sentence.
        threads: What the native backend uses unless told otherwise.
        threads_reason: Where that number comes from; one sentence.
        logical_processors: Those that the scheduler may give to this process.
        physical_cores: Cores that they lie on.
        quota: Processors that the cgroup allows, None without a limit.
        memory_total, memory_available: Bytes of the machine, and bytes that this process may still take.
        memory_limit: Bytes that the cgroup allows, None without a limit.
        backends: Which can run here, and why others cannot.
        preflights: What backends found that look before they start.
    """

    version: str
    python: str
    system: str
    instruction_set: str | None
    instruction_set_reason: str
    threads: int
    threads_reason: str
    logical_processors: int
    physical_cores: int
    quota: float | None
    memory_total: int
    memory_available: int
    memory_limit: int | None
    backends: BackendTable
    preflights: tuple[Preflight, ...] = ()

    def __repr__(self) -> str:
        return text_table(self._rows())

    def _repr_html_(self) -> str:
        return html_table("ernie_accel", self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        tables = ("backends", "preflights")
        plain = {name: value for name, value in vars(self).items() if name not in tables}
        looked = [preflight.to_dict() for preflight in self.preflights]
        return {**plain, "backends": [vars(row) for row in self.backends], "preflights": looked}

    def _rows(self) -> list[tuple[str, str]]:
        limit = "no cgroup limit" if self.memory_limit is None else f"cgroup limit {size(self.memory_limit)}"
        quota = "no cgroup quota" if self.quota is None else f"cgroup quota {self.quota:g}"
        return [
            ("ernie_accel", self.version),
            ("python", self.python),
            ("system", self.system),
            ("instruction set", f"{self.instruction_set or 'none'}: {self.instruction_set_reason}"),
            ("threads", f"{self.threads}: {self.threads_reason}"),
            (
                "processors",
                f"{self.logical_processors} logical on {self.physical_cores} physical cores, {quota}",
            ),
            ("memory", f"{size(self.memory_available)} free of {size(self.memory_total)}, {limit}"),
            ("backends", repr(self.backends)),
            *((f"before {p.backend}", repr(p)) for p in self.preflights),
        ]


def doctor(
    source: str | os.PathLike[str] | None = None,
    *,
    backend: str | None = None,
    precision: Precision | Literal["auto"] = "auto",
    device: str | None = None,
    max_context: int | None = None,
    tensor_parallel: int | Literal["auto"] = 1,
    backend_options: object | None = None,
) -> Report:
    """Look at this machine as the library sees it. Loads no model; the one heavy import is the native extension.

    Args:
        source: A checkpoint directory; backends that look before they start then look at it too.
        backend: Of those, this one alone.
        precision: As in ``Model.load``, for what they look at; so are the others.
        device: See above.
        max_context: See above.
        tensor_parallel: See above.
        backend_options: See above.

    Raises:
        ArgumentError: There is no such backend, or a value can never work.
        CheckpointError: There is no such directory, or its settings are damaged.
        UnsupportedError: The backend named has not that precision, or splits no model.
    """
    from ernie_accel import __version__

    options = LoadOptions(
        precision=precision,
        device=device,
        max_context=max_context,
        tensor_parallel=tensor_parallel,
        backend_options=backend_options,
    )
    cpus = system.affinity()
    instruction_set, instruction_set_reason = _instruction_set()
    threads, threads_reason = _threads()
    return Report(
        version=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} on {platform.machine()}",
        instruction_set=instruction_set,
        instruction_set_reason=instruction_set_reason,
        threads=threads,
        threads_reason=threads_reason,
        logical_processors=len(cpus),
        physical_cores=system.physical_cores(Path("/"), cpus),
        quota=system.cpu_quota(),
        memory_total=system.total_memory(),
        memory_available=system.available_memory(),
        memory_limit=system.memory_limit(),
        backends=registry.available(),
        preflights=_preflights(source, backend, options),
    )


def _preflights(
    source: str | os.PathLike[str] | None, name: str | None, options: LoadOptions
) -> tuple[Preflight, ...]:
    """Let backends look that do so before they start."""
    place = find(source, None, None, None, weights=True)
    looked: list[Preflight] = []
    for candidate in registry.names() if name is None else (name,):
        try:
            backend = registry.get(candidate)
        except BackendUnavailableError:
            continue  # the table of backends says why
        if candidate == name:
            registry.check_split(backend, options)
            registry.check_precision(backend, options)
        if not isinstance(backend, PreflightBackend) or _foreign(backend, options):
            continue
        registry.check_precision(backend, options)
        looked.append(backend.preflight(place.directory, place.config, options))
    return tuple(looked)


def _foreign(backend: object, options: LoadOptions) -> bool:
    """Whether the options given are another backend's."""
    kind = getattr(backend, "options_type", None)
    return options.backend_options is not None and (
        kind is None or not isinstance(options.backend_options, kind)
    )


def _instruction_set() -> tuple[str | None, str]:
    from ernie_accel.backends.native.isa import choose_isa

    try:
        choice = choose_isa()
    except (ImportError, ErnieAccelError) as error:
        return None, str(error)
    return choice.isa, choice.reason


def _threads() -> tuple[int, str]:
    available = system.available_threads()
    try:
        forced = env.threads()
    except ErnieAccelError as error:
        return available, f"{error}."
    if forced is not None:
        return forced, f"Chosen by ERNIE_ACCEL_THREADS; {available} without it."
    return available, "One for each physical core, within affinity and cgroup quota."
