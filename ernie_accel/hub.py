"""From a path or a hub id to a local directory. The one file that knows huggingface_hub (extra ``hub``).

The library's own settings hold: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME, HF_TOKEN. A dropped connection goes on where it
stopped, and files that are complete are never fetched twice.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

from ernie_accel.errors import ArgumentError, CheckpointError, HubError, MissingExtraError
from ernie_accel.types import Progress

__all__ = ["check_hub_options", "is_hub_id", "local_path", "resolve"]

# What a text checkpoint needs, at the top of the repository: weights, configuration, tokenizer, chat template.
_WEIGHTS = "*.safetensors"
_WANTED = [_WEIGHTS, "*.json", "tokenizer.model", "chat_template.jinja"]
_NESTED = ["*/*"]

# The hub library goes on with a broken download either by itself or when it is called again; how often we call.
_ATTEMPTS = 4
_HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpx2", "httpcore")

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_PART}/{_PART}")


def check_hub_options(revision: object, cache_dir: object) -> None:
    """Raise ArgumentError for what no hub id could take, whatever the source is."""
    if revision is not None and not isinstance(revision, str):
        raise ArgumentError(f"revision={revision!r}: must be None or the name of a branch, tag or commit")
    if cache_dir is not None and not isinstance(cache_dir, (str, os.PathLike)):
        raise ArgumentError(f"cache_dir={cache_dir!r}: must be None or the path of a directory")


def is_hub_id(text: str) -> bool:
    """Whether a string has the form of a hub id, ``organisation/name``."""
    return len(text) <= 96 and _HUB_ID.fullmatch(text) is not None and "--" not in text and ".." not in text


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path, with "~" and "~user" taken for the home directory where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a name like any other then, as shells have it
        return Path(path)


def resolve(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    offline: bool | None = None,
    weights: bool = True,
) -> Path:
    """Return the local directory of a checkpoint, downloading what a hub id names.

    Args:
        path_or_id: A path that exists is taken as it is; otherwise a string of the form ``organisation/name``.
        revision: Branch, tag or commit of the repository; None takes its main branch.
        cache_dir: Where downloads are kept; None takes the hub library's own place.
        progress: Called with ``("download", done, total)``, bytes of the files that are fetched (needs a hub library
            that counts bytes over all files, 1.1 or newer). None leaves the hub library's own bars.
        offline: True looks in the cache alone; None follows HF_HUB_OFFLINE.
        weights: False leaves out the files of weights.

    Raises:
        CheckpointError: It is neither an existing path nor of the form of a hub id.
        HubError: The hub has no such repository or revision, refuses access, or cannot be reached.
        MissingExtraError: A hub id was given and huggingface_hub is not installed.
        ArgumentError: It is empty, or a revision was given for a local path.
    """
    if not os.fspath(path_or_id):
        raise ArgumentError(f"source={path_or_id!r}: must be the path of a directory, or a hub id")
    path = local_path(path_or_id)
    if _exists(path):
        if revision is not None:
            raise ArgumentError(
                f"revision={revision!r}: {path} is a local path, which has none; leave it out"
            )
        return path
    if not isinstance(path_or_id, str) or not is_hub_id(path_or_id):
        raise CheckpointError(
            f"{path}: there is no such directory, and it is no hub id of the form 'organisation/name'; give one of them"
        )
    wanted = _WANTED if weights else [pattern for pattern in _WANTED if pattern != _WEIGHTS]
    return _download(path_or_id, revision, cache_dir, progress, bool(offline), wanted)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a directory above it that may not be read, a name that is too long
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _download(
    repository: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: Progress | None,
    offline: bool,
    wanted: list[str],
) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError.of(
            "hub", f"Downloading {repository!r} (no local directory has that name)"
        ) from error
    meter = _Meter(progress) if progress else None
    attempts = _ATTEMPTS
    while True:
        attempts -= 1
        try:
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    cache_dir=cache_dir,
                    allow_patterns=wanted,
                    ignore_patterns=_NESTED,
                    local_files_only=offline,
                    tqdm_class=meter.bar_class() if meter else None,
                )
            )
        # errors of the connection come from whichever HTTP library the hub library uses
        except Exception as error:
            if meter and meter.failure:
                raise meter.failure from None
            if not attempts or type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
                raise HubError(f"{repository}: {_explain(error, repository, revision)}") from error


def _explain(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import errors

    explanations: tuple[tuple[type[Exception], str], ...] = (
        # subclasses before their bases
        (
            errors.GatedRepoError,
            "access must be granted on the hub's page of the model, then log in or set HF_TOKEN",
        ),
        (
            errors.RepositoryNotFoundError,
            "the hub has no such repository (nor is there a local directory of that name); check the spelling, "
            "or log in if it is private",
        ),
        (errors.RevisionNotFoundError, f"revision={revision!r} does not exist in this repository"),
        (
            errors.LocalEntryNotFoundError,
            "it is not complete in the cache and the hub is switched off or cannot be reached; connect, unset "
            "HF_HUB_OFFLINE, or give the path of a local directory",
        ),
    )
    for kind, text in explanations:
        if isinstance(error, kind):
            return text
    return f"the download failed ({type(error).__name__}: {error}); what is complete is kept, so call again to go on"


class _Meter:
    """Turns the hub library's progress bars into calls of one function."""

    def __init__(self, progress: Progress) -> None:
        self.failure: Exception | None = None
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0

    def report(self, done: int, total: int) -> None:
        """Pass on a bar's state; the bars of received and of written bytes count the same bytes, the larger holds."""
        with self._lock:
            if done <= self._done:
                return
            self._done = done
            try:
                self._progress("download", done, max(done, total))
            except Exception as error:
                # the caller's own error comes out as it is, whatever the hub library makes of it
                self.failure = self.failure or error
                raise

    def bar_class(self) -> type[Any]:
        """Return a class of bars that draw nothing and report here."""
        from tqdm import tqdm

        meter = self

        class Bar(tqdm):  # type: ignore[type-arg]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                self._counts_bytes = kwargs.get("unit") == "B"
                self._seen = int(kwargs.get("initial") or 0)
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                self._seen += int(n or 0)
                if self._counts_bytes:
                    meter.report(self._seen, int(self.total or 0))
                return None

        return Bar
