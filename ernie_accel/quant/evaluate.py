"""How far a model is from another over given texts: perplexity, Kullback-Leibler divergence and agreement.

KL(P || Q) of one position is the sum over the vocabulary of p (log p - log q): the nats that whoever believes Q loses
where P is true. All sums are float64 and in a fixed order, so that the same logits give the same figures anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ernie_accel.errors import ArgumentError
from ernie_accel.types import Progress

__all__ = ["Comparison", "HasLogits", "compare", "compare_all"]

Logits = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

BLOCK_BYTES = 4 << 20
"""Size of the float64 copy of the rows that are looked at together."""


class HasLogits(Protocol):
    """Whatever says what follows a text; ``ernie_accel.Model`` does."""

    def logits(self, token_ids: Sequence[int]) -> Logits:
        """Return float32 [T, vocab_size]; row i is what follows ``token_ids[: i + 1]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside its reference over the same texts.

    Attributes:
        tokens: Positions that were compared: all of every sequence.
        predicted: Positions whose next token is in the sequence; perplexity is over these.
        reference_perplexity, perplexity: exp of the mean of -log p(next token), of the reference and of the model.
        log_ratio_error: Standard error of log(perplexity / reference_perplexity), the positions taken as independent.
        kl: Mean of KL(reference || model), nats a token.
        kl_error: Standard error of that mean.
        kl_max: Largest of any position.
        top1: Share of positions where both have the same most probable token (the lowest id among equals).
    """

    tokens: int
    predicted: int
    reference_perplexity: float
    perplexity: float
    log_ratio_error: float
    kl: float
    kl_error: float
    kl_max: float
    top1: float

    @property
    def perplexity_change(self) -> float:
        """How much the perplexity grew, as a share of the reference's: 0.005 is half a percent."""
        return self.perplexity / self.reference_perplexity - 1


def compare(
    reference: HasLogits,
    model: HasLogits,
    sequences: Sequence[Sequence[int]],
    *,
    progress: Progress | None = None,
) -> Comparison:
    """Judge one model; see ``compare_all``."""
    return compare_all(reference, {"model": model}, sequences, progress=progress)["model"]


def compare_all(
    reference: HasLogits,
    models: Mapping[str, HasLogits],
    sequences: Sequence[Sequence[int]],
    *,
    progress: Progress | None = None,
) -> dict[str, Comparison]:
    """Judge several models beside one reference, whose logits are computed once.

    The logits of one sequence are held for the reference and each model, 4 bytes for each of its tokens and each id of
    the vocabulary: cut long texts to windows.

    Args:
        reference: What is taken for true.
        models: Whom to judge, by any name.
        sequences: Token ids; each sequence is a text of its own and at least one token long.
        progress: Called as ``progress("evaluate", done, total)``, in tokens.

    Raises:
        ArgumentError: There is no token to predict, vocabularies differ, or logits are no numbers.
    """
    if all(len(ids) < 2 for ids in sequences):
        raise ArgumentError("sequences: must hold at least one sequence of two tokens or more")
    total = sum(len(ids) for ids in sequences)
    sums = {name: _Sums() for name in models}
    done = 0
    for ids in sequences:
        base = _finite(reference.logits(ids), "the reference")
        others = {name: _finite(model.logits(ids), repr(name)) for name, model in models.items()}
        _check_shapes(base, others)
        _add_sequence(sums, base, others, np.asarray(ids, np.int64))
        done += len(ids)
        if progress is not None:
            progress("evaluate", done, total)
    return {name: entry.result() for name, entry in sums.items()}


def _finite(logits: Logits, whose: str) -> Logits:
    if not np.isfinite(logits).all():
        raise ArgumentError(f"logits of {whose} are no finite numbers")
    return logits


def _check_shapes(base: Logits, others: Mapping[str, Logits]) -> None:
    for name, other in others.items():
        if other.shape != base.shape:
            raise ArgumentError(
                f"model {name!r} gives logits of shape {other.shape}, the reference {base.shape}: "
                "both must have one vocabulary"
            )


class _Sums:
    """What accumulates over positions."""

    def __init__(self) -> None:
        self.tokens = self.predicted = self.agreed = 0
        self.nats = np.zeros(2)
        self.ratio_squares = self.kl = self.kl_squares = self.kl_max = 0.0

    def add_rows(self, kl: Values, agreed: int) -> None:
        self.tokens += len(kl)
        self.agreed += agreed
        self.kl += float(kl.sum())
        self.kl_squares += float((kl * kl).sum())
        self.kl_max = max(self.kl_max, float(kl.max()))

    def add_losses(self, reference: Values, model: Values) -> None:
        """Take -log p(next token) of positions that have one."""
        difference = model - reference
        self.predicted += len(difference)
        self.nats += reference.sum(), model.sum()
        self.ratio_squares += float((difference * difference).sum())

    def result(self) -> Comparison:
        reference, model = (float(nats) / self.predicted for nats in self.nats)
        kl = self.kl / self.tokens
        return Comparison(
            tokens=self.tokens,
            predicted=self.predicted,
            reference_perplexity=math.exp(reference),
            perplexity=math.exp(model),
            log_ratio_error=_standard_error(model - reference, self.ratio_squares, self.predicted),
            kl=kl,
            kl_error=_standard_error(kl, self.kl_squares, self.tokens),
            kl_max=self.kl_max,
            top1=self.agreed / self.tokens,
        )


def _standard_error(mean: float, squares: float, count: int) -> float:
    return math.sqrt(max(squares / count - mean * mean, 0.0) / count)


def _add_sequence(
    sums: Mapping[str, _Sums], base: Logits, others: Mapping[str, Logits], ids: npt.NDArray[np.int64]
) -> None:
    rows = max(1, BLOCK_BYTES // (8 * base.shape[1]))
    for first in range(0, len(ids), rows):
        block = slice(first, first + rows)
        following = ids[first + 1 : first + rows + 1]
        at = np.arange(len(following)), following
        p = _log_softmax(base[block])
        weights = np.exp(p)
        best = base[block].argmax(axis=1)
        for name, other in others.items():
            q = _log_softmax(other[block])
            sums[name].add_losses(-p[at], -q[at])
            agreed = other[block].argmax(axis=1) == best
            sums[name].add_rows(_divergence(p, weights, q), int(agreed.sum()))


def _log_softmax(logits: Logits) -> Values:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def _divergence(p: Values, weights: Values, q: Values) -> Values:
    """KL of each row; ``weights`` is exp(p). Rounding may make nothing a little less than nothing."""
    products = p - q
    products *= weights
    sums: Values = products.sum(axis=1)
    return np.maximum(sums, 0.0)
