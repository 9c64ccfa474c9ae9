"""Reads a given text: the model's logits, or hidden states, at every position."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Output, Step, StepResult
from ernie_accel.engine.job import Job
from ernie_accel.errors import BackendError, CapacityError
from ernie_accel.types import Score

__all__ = ["EmbedReader", "LogitsReader", "Reader", "ScoreReader"]

Rows = npt.NDArray[np.float32]

ROWS_PER_STEP = 128
"""Logits of 128 positions are 53 MB at ERNIE's vocabulary: enough rows for full speed, little memory."""


class Reader(Job):
    """Feeds a text and hands the rows of the answers on, each once, even where steps had to be repeated."""

    output: Output = "logits"

    def __init__(self, token_ids: Sequence[int]) -> None:
        super().__init__(list(token_ids))
        self._delivered = 0

    @property
    def next_count(self) -> int:
        """As many as give an answer of bounded size."""
        return min(self.pending, ROWS_PER_STEP)

    def step(self, count: int, *, late: bool = False) -> Step:
        """Ask for the rows that were not delivered yet."""
        ids = self.tokens[self.computed : self.computed + count]
        rows = max(0, self.computed + count - self._delivered)
        return Step(self._seq(), ids, rows=rows, output=self.output)

    def accept(self, count: int, result: StepResult) -> None:
        """Hand the rows on."""
        rows = result.logits if self.output == "logits" else result.hidden
        if rows is not None and len(rows):
            self.take(self._delivered, rows)
            self._delivered += len(rows)
        self.computed += count
        if self.computed == len(self.tokens):
            self.finish()

    def cancel(self) -> None:
        """End; half a text has no result."""
        self.outcome = "cancelled"
        self.finish()

    @abstractmethod
    def take(self, first: int, rows: Rows) -> None:
        """Take the answers at positions ``first`` and following, float32 [rows, vocab_size or hidden_size]."""

    def _seq(self) -> int:
        assert self.seq is not None, "the scheduler opens a sequence before it asks for a step"
        return self.seq


class LogitsReader(Reader):
    """Keeps all rows."""

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        super().__init__(token_ids)
        try:
            self.logits: Rows = np.empty((len(token_ids), vocab_size), np.float32)
        except MemoryError as error:
            raise CapacityError(
                f"the logits of {len(token_ids)} tokens take {4 * len(token_ids) * vocab_size:,} bytes, which the "
                "system does not give: ask for fewer tokens at a time, or for score()"
            ) from error

    def take(self, first: int, rows: Rows) -> None:
        """Copy the rows."""
        self.logits[first : first + len(rows)] = rows


class ScoreReader(Reader):
    """Keeps of each row the log-probability of the id that follows."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        super().__init__(token_ids)
        self._logprobs = np.zeros(len(token_ids), np.float64)

    def take(self, first: int, rows: Rows) -> None:
        """Look up the ids that follow."""
        for position, row in enumerate(rows, first + 1):
            if position < len(self.tokens):  # nothing follows the last
                self._logprobs[position] = _logprob(row, self.tokens[position])

    @property
    def score(self) -> Score:
        """The result, once the job is done."""
        logprobs = (None, *(float(value) for value in self._logprobs[1:]))
        return Score(token_ids=tuple(self.tokens), logprobs=logprobs)


class EmbedReader(Reader):
    """Keeps the sum of the hidden states, in the order of positions, so that chunks do not matter."""

    output: Output = "hidden"

    def __init__(self, token_ids: Sequence[int], hidden_size: int) -> None:
        super().__init__(token_ids)
        self._sum = np.zeros(hidden_size, np.float64)

    def take(self, first: int, rows: Rows) -> None:
        """Add the rows one by one."""
        for row in rows:
            self._sum += row

    @property
    def embedding(self) -> npt.NDArray[np.float64]:
        """Mean hidden state divided by its Euclidean length, once the job is done."""
        mean = self._sum / len(self.tokens)
        length = float(np.linalg.norm(mean))
        if not 0 < length < np.inf:
            raise BackendError(
                f"the mean hidden state has length {length}: the model's weights are out of range"
            )
        return mean / length


def _logprob(row: Rows, token_id: int) -> float:
    z = row.astype(np.float64)
    z -= z.max()
    return float(z[token_id] - np.log(np.exp(z).sum()))
