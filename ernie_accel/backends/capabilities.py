"""What Runners with certain capabilities have beside the methods of ``ernie_accel.backends.base.Runner``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from typing_extensions import Self

from ernie_accel.backends.base import Select, SequenceId, Step, StepProfile, StepResult

__all__ = ["Drafts", "Overlaps", "Parks", "Pending", "Profiles"]


@runtime_checkable
class Profiles(Protocol):
    """What a Runner with the capability ``profile`` has beside the methods of ``Runner``."""

    def profile(self, on: bool) -> StepProfile:
        """Begin or end counting, and return what was counted since the last call."""
        ...


@runtime_checkable
class Parks(Protocol):
    """What a Runner with the capability ``park`` has beside the methods of ``Runner``."""

    def park(self, seq: SequenceId) -> None:
        """Keep a sequence for later forks, outside the count of open ones; nothing may be appended to it again.

        Its tokens still take KV cache, until ``free``.
        """
        ...


@runtime_checkable
class Drafts(Protocol):
    """What a Runner with the capability ``draft`` has beside the methods of ``Runner``: multi-token prediction.

    The Runner keeps what it needs of every position: hidden states after the final norm, token ids, and the keys and
    values of the predicting layer. ``fork``, ``truncate`` and ``park`` are about them too, so drafts depend on the
    tokens of a sequence alone, not on how they came to be there. ``forward`` gives the bits that it gives without.
    """

    def draft(
        self, seqs: Sequence[SequenceId], token_ids: Sequence[int], depth: int
    ) -> list[tuple[int, ...]]:
        """Guess, for each sequence, ``depth`` tokens that come after ``token_ids[i]``.

        ``token_ids[i]`` is the token that follows those that ``seqs[i]`` holds, of which there is at least one: it was
        drawn and is not computed yet. Nothing is appended. The first guess is the most probable token after the
        predicting layer, the lowest id among equals; a further one takes the guess before it for right and the layer's
        own output, after the final norm, for the hidden state (``backends/reference.py`` is the definition).

        A tuple is empty where the Runner has not caught up with a long sequence, as it may after a long prompt: each
        call goes on where the last one stopped, and works on about ``max_step_tokens`` positions.

        Raises:
            ArgumentError: A sequence is empty, parked, unknown or there twice, an id is none, or ``depth`` is not
                positive.
            ContextLengthError: Token and guesses would not fit the context.
            CapacityError: There is no room for the keys and values of guesses; nothing has changed.
        """
        ...


@runtime_checkable
class Pending(Protocol):
    """A step under way. Its methods are called as the Runner's are: by one thread at a time.

    As a context manager it closes itself, so that no error in between leaves the Runner with a step that nobody ends.
    """

    def result(self, selects: Mapping[int, Select]) -> list[StepResult]:
        """Wait for the end of the step and return what ``forward`` would have.

        Args:
            selects: For each step with the output ``"select"`` that began without, how to draw, by its place in the
                batch.

        Raises:
            ArgumentError: A Select is missing, one too many, or does not fit the vocabulary; or the result was taken,
                or the step was closed.
            ClosedError: The Runner was closed.

        Whatever is raised, the step is over and every sequence is as it was before it.
        """
        ...

    def close(self) -> None:
        """Give the step up, as soon as can be: every sequence is as it was. Harmless once the result was taken."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Overlaps(Protocol):
    """What a Runner with the capability ``overlap`` has beside the methods of ``Runner``.

    The engine works out the masks of structured output while the step runs, which needs them only when it draws.
    """

    def start(self, batch: Sequence[Step]) -> Pending:
        """Begin what ``forward`` does, and return while it goes on.

        A step with the output ``"select"`` may leave its ``select`` out, for ``Pending.result`` to give. Until that has
        returned or raised, or ``Pending.close`` has, the Runner refuses every call with ArgumentError, but for ``info``
        and for ``close``, which gives the step up.

        Raises:
            ArgumentError, ContextLengthError, CapacityError: As ``forward``; nothing has begun and nothing changed.
        """
        ...
