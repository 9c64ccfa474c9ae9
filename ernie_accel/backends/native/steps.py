"""Steps and their answers, in the extension module's form and in that of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.base import Select, Step, StepResult
from ernie_accel.types import TokenLogprob

if TYPE_CHECKING:
    from ernie_accel import _native

__all__ = ["native_select", "native_steps", "to_results"]

T = TypeVar("T")
_NO_IDS = np.zeros(0, np.int32)
_NO_MASK = np.zeros(0, np.uint32)
_NONE: Mapping[int, Select] = MappingProxyType({})


def native_steps(batch: Sequence[Step], all_ids: Sequence[npt.NDArray[np.int32]]) -> list[_native.StepTuple]:
    """Return steps, with their checked ids, as ``forward`` and ``start`` of the extension module take them."""
    return [_to_tuple(step, ids) for step, ids in zip(batch, all_ids, strict=True)]


def _to_tuple(step: Step, ids: npt.NDArray[np.int32]) -> _native.StepTuple:
    select = None if step.select is None else native_select(step.select) if step.output == "select" else None
    return step.seq, ids, step.rows, step.output, select


def native_select(select: Select) -> _native.Select:
    """Return the settings in the extension module's form, arrays included."""
    from ernie_accel import _native

    seen = _array(select.seen, _NO_IDS)
    return _native.Select(
        temperature=select.temperature,
        top_k=select.top_k,
        top_p=select.top_p,
        min_p=select.min_p,
        repetition_penalty=select.repetition_penalty,
        presence_penalty=select.presence_penalty,
        frequency_penalty=select.frequency_penalty,
        vocab_limit=select.vocab_limit,
        seen=seen,
        counts=_array(select.counts, np.zeros_like(seen)),
        mask=_array(select.mask, _NO_MASK),
        logprobs=select.logprobs,
        seed=select.seed,
    )


def _array(given: npt.NDArray[T] | None, default: npt.NDArray[T]) -> npt.NDArray[T]:  # type: ignore[type-var]
    return default if given is None else np.ascontiguousarray(given, dtype=default.dtype)


def to_results(
    batch: Sequence[Step], answers: Sequence[_native.Answer], late: Mapping[int, Select] = _NONE
) -> list[StepResult]:
    """Return the answers of the extension module as the contract has them; ``late`` are selects that came later."""
    pairs = enumerate(zip(batch, answers, strict=True))
    return [_to_result(step, answer, late.get(i, step.select)) for i, (step, answer) in pairs]


def _to_result(step: Step, answer: _native.Answer, select: Select | None) -> StepResult:
    if answer is None:
        return StepResult()
    if step.output == "logits":
        return StepResult(logits=cast("npt.NDArray[np.float32]", answer))
    if step.output == "hidden":
        return StepResult(hidden=cast("npt.NDArray[np.float32]", answer))
    drawn = cast("list[_native.Drawn]", answer)
    tokens = tuple(token for token, _, _ in drawn)
    if select is None or select.logprobs < 0:
        return StepResult(token_ids=tokens)
    return StepResult(token_ids=tokens, logprobs=tuple(TokenLogprob(t, p, tuple(top)) for t, p, top in drawn))
