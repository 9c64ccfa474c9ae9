"""The definition of ``Select`` in NumPy: Runners that draw inside the step must draw the same tokens.

One row of raw logits, float32 [vocab_size], becomes a token like this:

1. Penalties, each operation rounded to float32, for every id of ``seen``: with the repetition penalty r
   (Keskar et al. 2019, "CTRL") ``l = l / r if l > 0 else l * r``; then, where its count is above 0,
   ``l = l - (frequency_penalty * count + presence_penalty)``.
2. Ids from ``vocab_limit`` on and ids that the mask forbids become -inf: they are never drawn.
3. Greedy, if the temperature is below ``GREEDY_BELOW``: the largest logit, the lowest id among equals.
4. Otherwise ids in the order (logit descending, id ascending), forbidden ones left out; the first ``top_k``
   stay, if that is above 0. The weight of a logit l beside the largest one, l0, is the whole number
   ``w = round(2**40 * exp((l - l0) / temperature))``, computed as ``weights`` below does: sums of whole numbers
   are exact, so whoever adds them in another order draws the same token. With c the running sum of w from the
   front: ``top_p`` below 1 keeps the shortest prefix with ``c >= top_p * c[-1]``, ``min_p`` keeps
   ``w >= min_p * 2**40``, and the first id stays in any case.
5. The draw: the first id with ``c > floor(u * s)``, where s is the sum of the weights kept (at most s - 1 is taken
   for ``floor(u * s)``); ``u = uniform(seed, position)``, where position is the place in the sequence that the
   drawn token has. Products with a sum are those of doubles.

Log-probabilities are those of the model itself: log-softmax, in float64, of the raw logits over all ids.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Select
from ernie_accel.backends.checks import check_select
from ernie_accel.errors import BackendError
from ernie_accel.types import TokenLogprob

__all__ = ["GREEDY_BELOW", "philox4x32", "select_rows", "uniform", "weights"]

GREEDY_BELOW = 1e-30
"""Lower temperatures take the largest logit: dividing by them could overflow, and the draw would be the same."""

WEIGHT_BITS = 40
"""The largest logit weighs 2 to this power: what is 2**41 times less probable is never drawn."""

_LOG2_E = 1.4426950408889634
_EXP2 = (
    1.0,
    0.6931471805599453,
    0.24022650695910072,
    0.05550410866482158,
    0.009618129107628477,
    0.0013333558146428443,
    0.0001540353039338161,
    1.5252733804059841e-05,
    1.321548679014431e-06,
    1.01780860092397e-07,
    7.054911620801123e-09,
    4.4455382718708116e-10,
)
"""ln(2)**k / k!"""

_U32 = 0xFFFFFFFF

Rows = npt.NDArray[np.float32]
Row = npt.NDArray[np.float32]


def select_rows(
    logits: Rows, select: Select, first_position: int
) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...] | None]:
    """Draw one token from each row.

    Args:
        logits: float32 [rows, vocab_size], raw.
        select: How to draw. The same for all rows: counts and mask do not follow the tokens drawn here.
        first_position: Absolute position of the token that row 0 draws (one past the position of the row
            itself); row i draws for ``first_position + i``.

    Returns:
        The tokens, and their log-probabilities where ``select.logprobs`` is at least 0.

    Raises:
        ArgumentError: Everything is masked out, or a field of ``select`` does not fit the vocabulary.
        BackendError: The logits hold NaN or +inf, or nothing but -inf.
    """
    check_select(select, logits.shape[1])
    ids = tuple(_select_row(row, select, first_position + i) for i, row in enumerate(logits))
    if select.logprobs < 0:
        return ids, None
    return ids, tuple(_logprob(row, token, select.logprobs) for row, token in zip(logits, ids, strict=True))


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to (seed, position): the top 53 of 64 Philox bits."""
    counter = (position & _U32, position >> 32 & _U32, 0, 0)
    x0, x1, _, _ = philox4x32(counter, (seed & _U32, seed >> 32 & _U32))
    return ((x0 << 32 | x1) >> 11) * 2.0**-53


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return one block of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product2 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = product2 >> 32 ^ x1 ^ k0, product2 & _U32, product0 >> 32 ^ x3 ^ k1, product0 & _U32
        k0, k1 = k0 + 0x9E3779B9 & _U32, k1 + 0xBB67AE85 & _U32
    return x0, x1, x2, x3


def _select_row(raw: Row, select: Select, position: int) -> int:
    row = _forbid(_penalize(raw, select), select)
    best = float(row.max())
    if best == -np.inf:
        raise BackendError(
            "every token that may be drawn has the logit -inf: the model's weights are out of range"
        )
    if not np.isfinite(best):
        raise BackendError(f"logits hold {best}: the model's weights or the penalties are out of range")
    if select.temperature < GREEDY_BELOW:
        return int(row.argmax())
    return _draw(row, select, uniform(select.seed, position))


def _penalize(raw: Row, select: Select) -> Row:
    """Return a copy of the row with the penalties applied."""
    row = raw.astype(np.float32)
    if select.seen is None:
        return row
    value, repetition = row[select.seen], np.float32(select.repetition_penalty)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported for the row as a whole
        value = np.where(value > 0, value / repetition, value * repetition)
        if select.counts is not None:
            subtract = np.float32(select.frequency_penalty) * select.counts.astype(np.float32)
            value = np.where(
                select.counts > 0, value - (subtract + np.float32(select.presence_penalty)), value
            )
    row[select.seen] = value
    return row


def _forbid(row: Row, select: Select) -> Row:
    """Set ids that must not be drawn to -inf, in place."""
    if select.vocab_limit:
        row[select.vocab_limit :] = -np.inf
    if select.mask is not None:
        ids = np.arange(len(row), dtype=np.uint32)
        row[select.mask[ids >> 5] >> (ids & 31) & 1 == 0] = -np.inf
    return row


def weights(row: Row, temperature: float) -> npt.NDArray[np.int64]:
    """Return step 4's weights of logits, int64 [n], the largest of them 2**40.

    ``2**y`` with ``y = (l - l0) * (log2(e) / temperature)`` is ``2**n * 2**f``, n whole and f at most 1/2 in size;
    ``2**f`` by its Taylor polynomial of degree 11 in Horner's form (relative error below 1e-14), every
    operation in float64. ``y`` is at least -64, where weights have long been 0.
    """
    z = row.astype(np.float64)
    y = np.maximum((z - z.max()) * (_LOG2_E / temperature), -64.0)
    n = np.rint(y)
    f = y - n
    p = np.full_like(f, _EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        p = p * f + coefficient
    whole: npt.NDArray[np.int64] = np.rint(np.ldexp(p, n.astype(np.int32) + WEIGHT_BITS)).astype(np.int64)
    return whole


def _draw(row: Row, select: Select, u: float) -> int:
    """Steps 4 and 5 of the definition above."""
    allowed = np.flatnonzero(row > -np.inf)
    order = allowed[np.argsort(-row[allowed], kind="stable")]  # stable: equals stay in the order of their ids
    if select.top_k > 0:
        order = order[: select.top_k]
    w = weights(row[order], select.temperature)
    running = np.cumsum(w)
    kept = _kept(w, running, select)
    point = min(int(u * kept), kept - 1)
    return int(order[np.searchsorted(running, point, side="right")])


def _kept(w: npt.NDArray[np.int64], running: npt.NDArray[np.int64], select: Select) -> int:
    """Return the sum of the weights that top-p and min-p keep, at least the first."""
    kept = int(running[-1])
    if select.top_p < 1:
        least = min(max(math.ceil(select.top_p * kept), 1), kept)
        kept = int(running[np.searchsorted(running, least, side="left")])
    if select.min_p > 0:
        kept = min(kept, int(w[w >= math.ceil(min(select.min_p, 1.0) * 2.0**WEIGHT_BITS)].sum()))
    return max(kept, int(w[0]))


def _logprob(raw: Row, token: int, alternatives: int) -> TokenLogprob:
    z = raw.astype(np.float64)
    z -= z.max()
    z -= np.log(np.exp(z).sum())
    best = np.argsort(-z, kind="stable")[:alternatives]
    return TokenLogprob(token, float(z[token]), tuple((int(i), float(z[i])) for i in best))
