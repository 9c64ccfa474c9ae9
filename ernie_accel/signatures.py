"""Keywords that are the fields of ``SamplingParams``: shown to ``help`` and notebooks, and merged with ``params``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from ernie_accel.errors import ArgumentError
from ernie_accel.types import Sampling, SamplingParams

__all__ = ["override", "single", "spelled_out"]

Method = TypeVar("Method", bound=Callable[..., Any])

ELSEWHERE = {
    "do_sample": "temperature=0 takes the most probable token, anything above draws",
    "generation_config": "params=SamplingParams(...)",
    "guided_choice": "choices=[...]",
    "guided_grammar": "grammar=...",
    "guided_json": "json_schema=...",
    "guided_regex": "regex=...",
    "max_completion_tokens": "max_tokens=...",
    "max_length": "max_tokens=..., which counts generated tokens alone",
    "max_new_tokens": "max_tokens=...",
    "num_return_sequences": "n=...",
    "repeat_penalty": "repetition_penalty=...",
    "response_format": "json_schema=... (or regex, grammar, choices)",
    "sampling_params": "params=...",
    "stop_sequences": "stop=...",
    "stop_strings": "stop=...",
    "stream": "the methods stream, stream_chat, astream, astream_chat",
    "top_logprobs": "logprobs=...",
}
"""What other libraries call things, and what they are here."""


def spelled_out(method: Method) -> Method:
    """Give a method that ends in ``**sampling`` the signature that it stands for.

    Type checkers and editors know the keywords from the annotation ``Unpack[Sampling]``; this is for those that look at
    the running program.
    """
    signature = inspect.signature(method)
    *own, last = signature.parameters.values()
    assert last.kind is inspect.Parameter.VAR_KEYWORD, f"{method.__qualname__} does not end in **sampling"
    keywords = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_optional(str(field.type))
        )
        for field in fields(SamplingParams)
    ]
    method.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
    return method


def single(params: SamplingParams) -> SamplingParams:
    """Return the settings of a stream. Raises ArgumentError if they ask for several completions."""
    if params.n != 1:
        raise ArgumentError(
            f"n={params.n}: a stream gives one completion, as a conversation does; use generate or chat "
            "for several"
        )
    return params


def override(params: SamplingParams | None, given: Mapping[str, Any]) -> SamplingParams:
    """Return ``params`` (or the defaults) with those fields replaced that are given and not None."""
    if params is not None and not isinstance(params, SamplingParams):
        raise ArgumentError(
            f"params={params!r}: must be a SamplingParams; keywords such as max_tokens=... stand alone"
        )
    unknown = [name for name in given if name not in Sampling.__annotations__]
    if unknown:
        raise TypeError(
            f"unknown keyword {unknown[0]!r}{_instead_of(unknown[0])}: besides timeout and priority there are "
            f"{', '.join(Sampling.__annotations__)}"
        )
    return replace(params or SamplingParams(), **{name: v for name, v in given.items() if v is not None})


def _optional(annotation: str) -> str:
    return annotation if annotation.endswith("| None") else f"{annotation} | None"


def _instead_of(name: str) -> str:
    """Say what is meant by a keyword that does not exist, where that can be told."""
    if name in ELSEWHERE:
        return f" (here: {ELSEWHERE[name]})"
    close = difflib.get_close_matches(name, Sampling.__annotations__, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
