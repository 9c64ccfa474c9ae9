"""Checks that every Runner makes before it touches a sequence, so that a refused step changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import LoadOptions, RunnerInfo, Select, SequenceId, Step
from ernie_accel.errors import ArgumentError, ContextLengthError, UnsupportedError

__all__ = [
    "CPU_ONLY",
    "check_batch",
    "check_context",
    "check_drafts",
    "check_late",
    "check_length",
    "check_plain_cpu",
    "check_select",
]

CPU_ONLY = (
    "runs on the cpu; use device='cpu', or name a backend for that device (ernie-accel doctor lists all)"
)

Ids = npt.NDArray[np.int32]

_DRAWN_WITH = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def check_batch(
    batch: Sequence[Step], info: RunnerInfo, length: Callable[[SequenceId], int], *, late: bool = False
) -> list[Ids]:
    """Check a ragged batch against the Runner's limits and return the token ids of each step.

    Args:
        batch: What ``Runner.forward`` was given.
        info: The Runner's limits and capabilities.
        length: ``Runner.length``; raises ArgumentError for a sequence that is not open.
        late: The batch is for ``Overlaps.start``: a Select may come later, for ``check_late`` to look at.

    Raises:
        ArgumentError: A step is malformed, names a sequence twice, or the batch holds too many tokens.
        ContextLengthError: A sequence would become longer than the context.
        UnsupportedError: The output asked for is not among the capabilities.
    """
    if len({step.seq for step in batch}) < len(batch):
        raise ArgumentError(f"a step names a sequence twice: {[step.seq for step in batch]}")
    all_ids = []
    for step in batch:
        ids = _ids(step, info.vocab_size)
        _check_output(step, len(ids), info, late)
        _check_room(length(step.seq), len(ids), info.max_context)
        all_ids.append(ids)
    total = sum(map(len, all_ids))
    if total > info.max_step_tokens:
        raise ArgumentError(
            f"a step of {total} tokens: at most {info.max_step_tokens}; send the prompt in chunks"
        )
    return all_ids


def check_late(batch: Sequence[Step], selects: Mapping[int, Select], vocab_size: int) -> None:
    """Raise ArgumentError unless ``selects``, given to ``Pending.result``, are those that ``batch`` lacks."""
    lacking = {i for i, s in enumerate(batch) if s.output == "select" and s.select is None and s.rows > 0}
    if lacking != set(selects):
        raise ArgumentError(
            f"selects for the steps {sorted(selects)} of the batch: must be there for {sorted(lacking)}, which lack one"
        )
    for select in selects.values():
        check_select(select, vocab_size)


def check_drafts(
    seqs: Sequence[SequenceId],
    token_ids: Sequence[int],
    depth: int,
    info: RunnerInfo,
    length: Callable[[SequenceId], int],
) -> None:
    """Check what ``Drafts.draft`` was given; errors are those of its contract."""
    if "draft" not in info.capabilities:
        raise UnsupportedError(
            f"backend {info.backend!r} was opened without multi-token prediction; open it with multi_token=True"
        )
    if len(seqs) != len(token_ids) or len(set(seqs)) < len(seqs):
        raise ArgumentError(
            f"{len(token_ids)} token ids for sequences {list(seqs)}: must be one each, none twice"
        )
    if len(seqs) > info.max_step_tokens:
        raise ArgumentError(f"drafts for {len(seqs)} sequences: at most {info.max_step_tokens} in one call")
    if depth < 1:
        raise ArgumentError(f"depth={depth}: must be at least 1")
    for seq, token in zip(seqs, token_ids, strict=True):
        if not 0 <= token < info.vocab_size:
            raise ArgumentError(f"token id {token}: must lie in [0, {info.vocab_size})")
        held = length(seq)
        if held < 1:
            raise ArgumentError(f"sequence {seq} is empty: there is nothing to draft from")
        _check_room(held, 1 + depth, info.max_context)


def check_select(select: Select, vocab_size: int) -> None:
    """Raise ArgumentError unless a draw from ``vocab_size`` logits can be made as ``select`` says."""
    _check_numbers(select)
    if not 0 <= select.vocab_limit <= vocab_size:
        raise ArgumentError(f"vocab_limit={select.vocab_limit}: must lie in [0, {vocab_size}]")
    if not -1 <= select.logprobs <= vocab_size:
        raise ArgumentError(
            f"logprobs={select.logprobs}: must be at most {vocab_size}, the size of the vocabulary"
        )
    _check_seen(select.seen, select.counts, vocab_size)
    if select.mask is not None:
        _check_mask(select.mask, select.vocab_limit or vocab_size, vocab_size)


def check_length(length: int, held: int) -> None:
    """Raise ArgumentError unless the first ``length`` tokens of a sequence of ``held`` exist."""
    if not 0 <= length <= held:
        raise ArgumentError(
            f"length={length}: the sequence holds {held} tokens, so it must lie in [0, {held}]"
        )


def check_context(options: LoadOptions, trained: int) -> int:
    """Return the context to use: what was asked for, or what the model was trained for.

    Raises:
        ArgumentError: ``max_context`` is not positive, or longer than the model was trained for.
    """
    wanted = trained if options.max_context is None else options.max_context
    if not 1 <= wanted <= trained:
        raise ArgumentError(
            f"max_context={wanted}: must lie in [1, {trained}], what the model was trained for"
        )
    return wanted


def check_plain_cpu(name: str, options: LoadOptions) -> None:
    """Refuse settings that mean nothing to a backend which is one NumPy process.

    Raises:
        UnsupportedError: Another device, a split, or a number of threads was asked for.
        ArgumentError: ``max_batch`` is not positive.
    """
    if options.device not in (None, "cpu"):
        raise UnsupportedError(f"device={options.device!r}: backend {name!r} {CPU_ONLY}")
    if options.tensor_parallel not in (1, "auto"):
        raise UnsupportedError(
            f"tensor_parallel={options.tensor_parallel}: backend {name!r} cannot be split; use 1"
        )
    if options.threads is not None:
        raise UnsupportedError(
            f"threads={options.threads}: backend {name!r} leaves threads to NumPy; backend 'native' takes the setting"
        )
    if options.max_batch is not None and options.max_batch < 1:
        raise ArgumentError(f"max_batch={options.max_batch}: must be at least 1")


def _ids(step: Step, vocab_size: int) -> Ids:
    ids = np.asarray(step.token_ids)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ArgumentError(f"token_ids={step.token_ids!r}: must be a flat sequence of at least one token id")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ArgumentError(f"token id {low if low < 0 else high}: must lie in [0, {vocab_size})")
    return ids.astype(np.int32)


def _check_output(step: Step, count: int, info: RunnerInfo, late: bool) -> None:
    if not 0 <= step.rows <= count:
        raise ArgumentError(
            f"rows={step.rows}: the step appends {count} tokens, so rows must lie in [0, {count}]"
        )
    if step.output not in ("logits", "hidden", "select"):
        raise ArgumentError(f"output={step.output!r}: must be logits, hidden or select")
    if step.output != "logits" and step.output not in info.capabilities:
        raise UnsupportedError(
            f"output={step.output!r}: backend {info.backend!r} lacks that capability; ask for logits instead"
        )
    if step.output == "select" and not (late and step.select is None):
        if step.select is None:
            raise ArgumentError("output='select' needs select=Select(...)")
        check_select(step.select, info.vocab_size)


def _check_room(held: int, added: int, max_context: int) -> None:
    if held + added > max_context:
        raise ContextLengthError(
            f"a sequence of {held} tokens and {added} more: the context holds {max_context}; shorten the prompt"
        )


def _check_numbers(select: Select) -> None:
    """Code that draws divides by these and compares with them: NaN and infinity would lead it out of its tables."""
    for name in _DRAWN_WITH:
        value = getattr(select, name)
        if not math.isfinite(value):
            raise ArgumentError(f"{name}={value!r}: must be a finite number")
    if select.top_k < 0:
        raise ArgumentError(f"top_k={select.top_k}: must be at least 0")
    if not 0 <= select.seed < 1 << 64:
        raise ArgumentError(f"seed={select.seed}: must be from 0 to 2**64 - 1")


def _check_seen(seen: Ids | None, counts: Ids | None, vocab_size: int) -> None:
    if seen is not None and len(seen) and (seen.min() < 0 or seen.max() >= vocab_size):
        raise ArgumentError(
            f"seen holds ids from {seen.min()} to {seen.max()}: must lie in [0, {vocab_size})"
        )
    if counts is not None and (seen is None or counts.shape != seen.shape):
        raise ArgumentError(f"counts has shape {counts.shape}: must have one entry for each id of seen")


def _check_mask(mask: npt.NDArray[np.uint32], limit: int, vocab_size: int) -> None:
    words = (vocab_size + 31) // 32
    if mask.shape != (words,):
        raise ArgumentError(
            f"mask has shape {mask.shape}: must be ({words},), one bit for each of {vocab_size} ids"
        )
    whole, rest = divmod(limit, 32)
    if not mask[:whole].any() and not (rest and int(mask[whole]) & (1 << rest) - 1):
        raise ArgumentError("every token is masked out: a mask must allow at least one id below vocab_limit")
