"""What requests raise whose work could not go on."""

from __future__ import annotations

from ernie_accel.errors import BackendError, CapacityError, ErnieAccelError

__all__ = ["alone", "failed"]


def failed(error: BaseException, backend: str) -> BaseException:
    """Return what a request raises where a backend, or what reads its answers, raised ``error``.

    An error of the library's own is meant for the caller; any other becomes a BackendError, one for each request, since
    raising writes into it.
    """
    if isinstance(error, ErnieAccelError) or not isinstance(error, Exception):
        return error
    failure = BackendError(f"backend {backend!r} failed in a step: {error!r}")
    failure.__cause__ = error
    return failure


def alone(error: CapacityError, tokens: int) -> CapacityError:
    """Return what a request raises that finds no memory although nothing else runs."""
    advice = "shorten the prompt, lower max_tokens, or load the model with a larger memory_limit"
    failure = CapacityError(
        f"{tokens} tokens do not fit in memory, although nothing else runs: {error}; {advice}"
    )
    failure.__cause__ = error
    return failure
