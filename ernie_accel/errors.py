"""The error tree.

::

    ErnieAccelError
    ├── ArgumentError (also ValueError)      an argument that can never work; says the value and what is allowed
    ├── CheckpointError                      a model directory or file is damaged, unsafe or not understood
    │   └── UnsupportedCheckpointError       it is sound, but of a kind that this version cannot run
    ├── TokenizerError                       the tokenizer is missing or damaged, or a template failed
    ├── HubError                             a hub id could not be resolved or downloaded
    ├── BackendError                         a backend failed while it worked
    │   ├── BackendProcessError              the process that a backend runs in ended or does not answer; has its log
    │   ├── BackendUnavailableError          the backend cannot run here; says why and what to do
    │   ├── RemoteError                      a server refused, failed or broke off; has its HTTP status
    │   └── UnsupportedError                 the backend cannot do what was asked; names those that can
    ├── MissingExtraError (also ImportError) an optional dependency is not installed; says the command
    ├── ContextLengthError (also ValueError) prompt (and output) do not fit the context
    ├── CapacityError                        memory for another token, sequence or request is used up
    │   └── QueueFullError                   the bounded queue of requests is full
    ├── DeadlineError (also TimeoutError)    a wait, or a request, took longer than its timeout
    └── ClosedError                          the model (or handle) was closed before or during the call
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ArgumentError",
    "BackendError",
    "BackendProcessError",
    "BackendUnavailableError",
    "CapacityError",
    "CheckpointError",
    "ClosedError",
    "ContextLengthError",
    "DeadlineError",
    "ErnieAccelError",
    "HubError",
    "MissingExtraError",
    "QueueFullError",
    "RemoteError",
    "TokenizerError",
    "UnsupportedCheckpointError",
    "UnsupportedError",
]


class ErnieAccelError(Exception):
    """Base of every error that this library raises on purpose."""


class ArgumentError(ErnieAccelError, ValueError):
    """An argument has a value that can never work."""


class CheckpointError(ErnieAccelError):
    """A model directory or file is damaged, unsafe or not understood."""


class UnsupportedCheckpointError(CheckpointError):
    """The checkpoint is sound, but of a kind that this version cannot run."""


class TokenizerError(ErnieAccelError):
    """The tokenizer is missing or damaged, or a chat template failed."""


class HubError(ErnieAccelError):
    """A hub id could not be resolved or downloaded."""


class BackendError(ErnieAccelError):
    """A backend failed while it worked."""


class BackendProcessError(BackendError):
    """The process that a backend runs in ended, or was ended because it did not answer in time.

    Attributes:
        exit_code: What it ended with; the negative number of a signal that ended it; None where nobody knows.
        log: Last lines of its output, oldest first.
    """

    def __init__(self, message: str, *, exit_code: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.log = tuple(log)


class BackendUnavailableError(BackendError):
    """The backend cannot run on this machine."""


class RemoteError(BackendError):
    """A server refused a request, failed, broke off, or sent what is none of the API.

    Attributes:
        status: Its HTTP status, None where it was not that.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class UnsupportedError(BackendError):
    """The backend cannot do what was asked."""


class MissingExtraError(ErnieAccelError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, extra: str, purpose: str) -> MissingExtraError:
        """Build the one-sentence error that names the command which installs ``extra``."""
        return cls(
            f"{purpose} needs an optional dependency; install it with: pip install 'ernie-accel[{extra}]' "
            f"(in a clone: pip install --editable '.[{extra}]')"
        )


class ContextLengthError(ErnieAccelError, ValueError):
    """Prompt and output do not fit the context."""


class CapacityError(ErnieAccelError):
    """Memory for another token, sequence or request is used up."""


class QueueFullError(CapacityError):
    """The bounded queue of requests is full."""


class DeadlineError(ErnieAccelError, TimeoutError):
    """A wait, or a request, took longer than its timeout."""


class ClosedError(ErnieAccelError):
    """The model was closed before or during the call."""
