"""How tokens are chosen and when generation ends: the options of every call that generates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypedDict, cast

from ernie_accel.errors import ArgumentError
from ernie_accel.structure import Structure

__all__ = ["Sampling", "SamplingParams"]


def _check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ArgumentError(f"{name}={value!r}: must be {allowed}")


def _as_tuple(name: str, value: object, allowed: str) -> tuple[Any, ...]:
    _check(isinstance(value, Iterable), name, value, allowed)
    return tuple(cast("Iterable[Any]", value))


def _is_int(value: object) -> bool:
    """Whether it is a whole number; NumPy's are too, bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when generation ends.

    ``None`` takes the value of the checkpoint's ``generation_config.json``, or the neutral value where that has none.
    The order of operations is: penalties, temperature, top-k, top-p, min-p, draw.

    Attributes:
        max_tokens: Largest number of tokens to generate.
        temperature: Divides the logits; 0 takes the most probable token (the lowest id among equals).
        top_p: Keeps the smallest set of most probable tokens whose probabilities sum to at least this.
        top_k: Keeps this many most probable tokens; 0 keeps all.
        min_p: Drops tokens less probable than this times the most probable one.
        repetition_penalty: Divides positive and multiplies negative logits of tokens of prompt and output (CTRL, 2019).
        presence_penalty: Subtracted once from logits of tokens that the output already holds.
        frequency_penalty: Subtracted from logits for each time that the output holds the token.
        stop: Strings that end the generation; they are not part of the text.
        stop_token_ids: Ids that end the generation, beside the checkpoint's end tokens.
        seed: Of the draw, 0 to 2**64 - 1; None draws one and records it in the result.
        logprobs: How many most probable alternatives to report for each token; 0 reports nothing.
        n: How many completions to generate for each prompt; the first is what ``n=1`` gives.
        ignore_eos: Go on after end tokens, so that exactly ``max_tokens`` come.
        json_schema: Output is JSON of this schema, a mapping or JSON text (kept as text). This, ``regex``, ``grammar``
            and ``choices`` exclude one another and need the extra ``structured``; an output that ``max_tokens`` cuts is
            the beginning of one that fits.
        regex: The whole output matches this regular expression.
        grammar: Output is a sentence of this Lark grammar, from its rule ``start``.
        choices: Output is one of these texts.
    """

    max_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    seed: int | None = None
    logprobs: int = 0
    n: int = 1
    ignore_eos: bool = False
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    choices: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_numbers()
        stops = "a string or a list of strings, none of them empty"
        stop = (self.stop,) if isinstance(self.stop, str) else _as_tuple("stop", self.stop, stops)
        _check(all(isinstance(s, str) and s for s in stop), "stop", self.stop, stops)
        ids = _as_tuple("stop_token_ids", self.stop_token_ids, "a list of token ids")
        ids_ok = all(_is_int(i) and i >= 0 for i in ids)
        _check(ids_ok, "stop_token_ids", self.stop_token_ids, "token ids of at least 0")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(map(int, ids)))
        _check(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "True or False")
        structure = self.structure
        object.__setattr__(self, "json_schema", structure.json_schema)
        object.__setattr__(self, "choices", structure.choices)
        if structure and self.ignore_eos:
            raise ArgumentError(
                "ignore_eos=True: an output with a structure ends with it; leave one of them out"
            )

    @property
    def structure(self) -> Structure:
        """What the output is held to; false if nothing."""
        return Structure.checked(self.json_schema, self.regex, self.grammar, self.choices)

    def _check_counts(self) -> None:
        for name, low in (("max_tokens", 1), ("n", 1), ("logprobs", 0)):
            value = getattr(self, name)
            _check(_is_int(value) and value >= low, name, value, f"a whole number of at least {low}")
            object.__setattr__(self, name, int(value))
        for name, high, allowed in (
            ("top_k", math.inf, "a whole number of at least 0"),
            ("seed", 2**64, "a whole number from 0 to 2**64 - 1"),
        ):
            value = getattr(self, name)
            _check(value is None or (_is_int(value) and 0 <= value < high), name, value, allowed)
            object.__setattr__(self, name, value if value is None else int(value))

    def _check_numbers(self) -> None:
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("temperature", lambda v: v >= 0, "a number of at least 0"),
            ("top_p", lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
            ("min_p", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            ("repetition_penalty", lambda v: v > 0, "a number above 0"),
            ("presence_penalty", lambda v: True, "a finite number"),
            ("frequency_penalty", lambda v: True, "a finite number"),
        )
        for name, ok, allowed in ranges:
            value = getattr(self, name)
            _check(value is None or (_is_number(value) and ok(value)), name, value, allowed)
            object.__setattr__(self, name, value if value is None else float(value))


class Sampling(TypedDict, total=False):
    """The fields of ``SamplingParams`` as keywords of the calls that generate; None means not given."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    seed: int | None
    logprobs: int | None
    n: int | None
    ignore_eos: bool | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None
