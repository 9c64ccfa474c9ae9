"""Finds backends by name through the entry-point group ``ernie_accel.backends``; each is imported when it is asked for.

A package adds a backend by naming a class (called without arguments) in its own metadata::

    [project.entry-points."ernie_accel.backends"]
    mine = "my_package.backend:MyBackend"

An entry point that does not load is reported by ``available`` and never disturbs the others.
"""

from __future__ import annotations

import difflib
import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ernie_accel.backends.base import AnswersForOptions, Availability, Backend, LoadOptions
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError, BackendUnavailableError, UnsupportedError

__all__ = [
    "AUTO",
    "GROUP",
    "BackendStatus",
    "BackendTable",
    "Choice",
    "available",
    "check_precision",
    "check_split",
    "choose",
    "foresee",
    "get",
    "names",
    "pick",
    "precisions",
    "settle_precision",
]

GROUP = "ernie_accel.backends"

AUTO: Mapping[str, tuple[str, ...]] = {"cpu": ("native",), "gpu": ("fastdeploy", "tensorrt")}
"""What ``backend="auto"`` stands for by the kind of device, in order. ``reference`` is no part of it: it is thousands
of times slower, and nothing may step down to it in silence."""

_RESERVED = {"gpu": "the name is reserved and nothing provides it yet"}


@dataclass(frozen=True)
class BackendStatus:
    """One backend: whether it can run here; if not, why, and what to do about it."""

    name: str
    ok: bool
    reason: str
    next_step: str = ""


@dataclass(frozen=True, repr=False)
class BackendTable:
    """All backends that are installed, by name; prints as a table, in notebooks too."""

    rows: tuple[BackendStatus, ...]

    def __iter__(self) -> Iterator[BackendStatus]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> BackendStatus:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __repr__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        return "\n".join(
            f"{row.name:<{width}}  {'yes' if row.ok else 'no ':<3}  {_sentence(row)}" for row in self.rows
        )

    def _repr_html_(self) -> str:
        cells = ((row.name, "yes" if row.ok else "no", row.reason, row.next_step) for row in self.rows)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        head = "".join(f"<th>{title}</th>" for title in ("backend", "available", "reason", "next step"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def names() -> tuple[str, ...]:
    """Names of all backends that are installed, in alphabetical order, whether they can run here or not."""
    return tuple(sorted(_entries()))


def get(name: str) -> Backend:
    """Import the backend of that name.

    Raises:
        ArgumentError: No backend has that name.
        BackendUnavailableError: The name is reserved, or the entry point does not load.
    """
    if name in _RESERVED:
        raise BackendUnavailableError(
            f"backend={name!r}: {_RESERVED[name]}; choose one of {', '.join(names())}"
        )
    entries = _entries()
    if not entries:
        raise BackendUnavailableError(
            "no backend is installed: this Python found the source folder of ernie_accel, not an installation; "
            "install it with 'pip install --editable .' in the clone, or use the clone's .venv/bin/python"
        )
    if name not in entries:
        raise ArgumentError(
            f"backend={name!r}: must be auto or one of {', '.join(sorted(entries))}{_hint(name, entries)}"
        )
    return _load(entries[name])


def available() -> BackendTable:
    """Ask every installed backend whether it can run here."""
    return BackendTable(tuple(_status(name) for name in names()))


@dataclass(frozen=True)
class Choice:
    """A backend and the sentence that says why this one."""

    backend: Backend
    reason: str


def choose(name: str = "auto", options: LoadOptions | None = None) -> Backend:
    """Return the backend of that name; ``"auto"`` takes one by the rule of ``pick``.

    Raises:
        ArgumentError: No backend has that name.
        BackendUnavailableError: It cannot run here; for ``"auto"``: none can that the rule names.
    """
    return pick(name, options).backend


def pick(name: str = "auto", options: LoadOptions | None = None) -> Choice:
    """Return the backend of that name, or what ``"auto"`` means for these options, with the reason.

    The rule for ``"auto"``: the backend to which ``backend_options`` belong; without them, by ``device``: on the CPU
    (None or ``"cpu"``) ``native``, on a GPU (``"gpu"``, ``"gpu:0"``, ``"cuda"``) the first of ``AUTO["gpu"]`` that can
    run here.

    Raises:
        As ``choose``.
    """
    options = options or LoadOptions()
    if name != "auto":
        return Choice(_usable(get(name), options), f"backend={name!r} was asked for.")
    owner = _owner(options.backend_options)
    if owner is not None:
        kind = type(options.backend_options).__name__
        return Choice(_usable(owner, options), f"auto: {kind} belong to {owner.name!r}.")
    return _first(options)


def foresee(options: LoadOptions) -> str:
    """Name the backend that ``"auto"`` means on devices that need not be here: the rule of ``pick``, asking none.

    Raises:
        ArgumentError: ``backend_options`` belong to several backends.
    """
    owner = _owner(options.backend_options)
    return owner.name if owner is not None else AUTO.get(_kind(options), AUTO["cpu"])[0]


def _owner(backend_options: object | None) -> Backend | None:
    """Return the backend whose options these are; raise ArgumentError where several have that class."""
    if backend_options is None:
        return None
    able = [backend for name in names() if (backend := _loadable(name)) and hasattr(backend, "options_type")]
    owners = [b for b in able if type(backend_options) is b.options_type]
    owners = owners or [b for b in able if isinstance(backend_options, b.options_type)]
    if len(owners) > 1:
        raise ArgumentError(
            f"backend='auto': {type(backend_options).__name__} are options of "
            f"{' and '.join(repr(b.name) for b in owners)}; name one of them"
        )
    return owners[0] if owners else None


def _loadable(name: str) -> Any:
    try:
        return get(name)
    except BackendUnavailableError:
        return None


def _kind(options: LoadOptions) -> str:
    return (options.device or "cpu").partition(":")[0].replace("cuda", "gpu")


def _first(options: LoadOptions) -> Choice:
    device = _kind(options)
    refused: list[str] = []
    for name in AUTO.get(device, AUTO["cpu"]):
        status = _status(name, options)
        if status.ok:
            passed = f" ({' '.join(refused)})" if refused else ""
            return Choice(get(name), f"auto: {_WHY.get(device, _WHY['cpu'])}{passed}")
        refused.append(f"{name}: {_sentence(status)}")
    raise BackendUnavailableError(
        f'backend="auto" found none. {" ".join(refused)} The slow backend="reference" runs anywhere.'
    )


_WHY = {
    "cpu": "it is the fastest on a CPU.",
    "gpu": "it is the first that can run here of those for a GPU.",
}


def _usable(backend: Backend, options: LoadOptions) -> Backend:
    answer = _answer(backend, options)
    if not answer.ok:
        raise BackendUnavailableError(
            f"backend={backend.name!r} cannot run here: {answer.reason} {answer.next_step}".rstrip()
        )
    return backend


def _answer(backend: Backend, options: LoadOptions | None) -> Availability:
    if options is not None and isinstance(backend, AnswersForOptions):
        return backend.available_for(options)
    return backend.available()


def precisions(backend: Backend) -> tuple[str, ...]:
    """Return what a backend says that it has for weights, what ``"auto"`` means first; () if it does not say."""
    return tuple(getattr(backend, "precisions", ()))


def check_precision(backend: Backend, options: LoadOptions) -> None:
    """Raise UnsupportedError, naming the backends that can, unless the backend has the weight precision asked for.

    One that does not say what it has refuses by itself.
    """
    wanted, has = options.precision, precisions(backend)
    if wanted == "auto" or wanted in has or not has:
        return
    able = [name for name in names() if wanted in _precisions(name)]
    advice = f"; it is offered by {', '.join(able)}" if able else "; no installed backend offers it"
    raise UnsupportedError(f"precision={wanted!r}: backend {backend.name!r} has {', '.join(has)}{advice}")


def check_split(backend: Backend, options: LoadOptions) -> None:
    """Raise UnsupportedError, naming the backends that can, unless the backend splits a model as asked for."""
    if options.tensor_parallel in (1, "auto") or getattr(backend, "splits", False):
        return
    able = [name for name in names() if _splits(name)]
    advice = f"a backend that can: {', '.join(able)}" if able else "install a backend that can"
    raise UnsupportedError(
        f"tensor_parallel={options.tensor_parallel!r}: backend {backend.name!r} splits no model; use 1, or {advice}"
    )


def settle_precision(checkpoint: Checkpoint, options: LoadOptions) -> LoadOptions:
    """Take the precision of a checkpoint that has one, as its matrices are codes or packed.

    Raises UnsupportedError if another one was asked for.
    """
    own = getattr(checkpoint, "precision", None)
    if own is None:
        return options
    if options.precision not in ("auto", own):
        raise UnsupportedError(
            f"precision={options.precision!r}: {checkpoint.directory or checkpoint.info.name} is quantized to {own} "
            "and holds nothing else; leave precision='auto', or load or quantize the checkpoint that it was made of"
        )
    return replace(options, precision=own)


def _entries() -> dict[str, EntryPoint]:
    """Return entry points by name. One of ours wins over another package's of the same name."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in found or entry.value.startswith("ernie_accel."):
            found[entry.name] = entry
    return found


def _load(entry: EntryPoint) -> Backend:
    try:
        backend: Backend = entry.load()()
    except Exception as error:  # third-party code: whatever it raises must not take the others down
        raise BackendUnavailableError(
            f"backend {entry.name!r} could not be loaded from {entry.value!r}: {type(error).__name__}: {error}"
        ) from error
    missing = [name for name in ("name", "available", "estimate", "open") if not hasattr(backend, name)]
    if missing:
        raise BackendUnavailableError(
            f"backend {entry.name!r}: {entry.value!r} is not a Backend (see ernie_accel.backends.base): it has no "
            f"{', '.join(missing)}"
        )
    return backend


def _status(name: str, options: LoadOptions | None = None) -> BackendStatus:
    try:
        answer = _answer(get(name), options)
    except Exception as error:  # as in _load
        return BackendStatus(name, False, f"{error}.", "Repair or uninstall the package that provides it.")
    return BackendStatus(name, answer.ok, answer.reason, answer.next_step)


def _precisions(name: str) -> tuple[str, ...]:
    """Return what a backend computes in; nothing for ``mock``, which takes any name and computes nothing."""
    try:
        return () if name == "mock" else precisions(get(name))
    except BackendUnavailableError:
        return ()


def _splits(name: str) -> bool:
    try:
        return bool(getattr(get(name), "splits", False))
    except BackendUnavailableError:
        return False


def _hint(name: str, known: dict[str, EntryPoint]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _sentence(row: BackendStatus) -> str:
    return f"{row.reason} {row.next_step}".rstrip()
