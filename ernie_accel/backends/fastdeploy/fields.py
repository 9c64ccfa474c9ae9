"""From SamplingParams to the fields of a request, and back from reasons for an end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ernie_accel.backends.fastdeploy.names import FINISH, MAX_SEED, SAMPLING
from ernie_accel.backends.fastdeploy.options import Dialect
from ernie_accel.errors import UnsupportedError
from ernie_accel.types import FinishReason, SamplingParams

__all__ = ["finish_reason", "sampling"]

_STOPS: Mapping[Dialect, int] = {"fastdeploy": 5, "openai": 4}
_NEUTRAL: Mapping[str, float] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_BOUNDS = {"presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0)}
MAX_LOGPROBS = 20
_ALONE = "backends 'native' and 'reference' can"


def sampling(
    params: SamplingParams, seed: int, dialect: Dialect, *, guided: bool, logprobs: bool
) -> dict[str, Any]:
    """Return the fields of a request. None is left out, for the other side to decide.

    Args:
        params: What was asked for; ``n`` is not looked at.
        seed: Of this completion.
        dialect: Whose names.
        guided: Whether outputs with a structure are allowed.
        logprobs: Whether log-probabilities are.

    Raises:
        UnsupportedError: Something cannot be said; names the backends that can do it.
    """
    fields: dict[str, Any] = {}
    for name, names in SAMPLING.items():
        value = seed if name == "seed" else getattr(params, name)
        if value is None or value == _NEUTRAL.get(name, ()) or (name in _OFF and not value):
            continue
        theirs = names[0 if dialect == "fastdeploy" else 1]
        if theirs is None:
            raise UnsupportedError(f"{name}={value!r}: {_WHY.get(name, _PLAIN)[dialect]}; {_ALONE}")
        fields[theirs] = list(value) if isinstance(value, tuple) else value
    _check_values(params, dialect)
    if params.structure and not guided:
        raise UnsupportedError(
            "an output with a structure needs guided decoding, which is off: give FastDeployOptions(guided_decoding="
            f"True), with a server only if it was started so; {_ALONE}"
        )
    if params.logprobs and not logprobs:
        raise UnsupportedError(
            f"logprobs={params.logprobs}: they are off, since every token costs more with them: give "
            f"FastDeployOptions(logprobs=True), with a server only if it gives them (FastDeploy: --enable-logprob); "
            f"{_ALONE}"
        )
    if params.json_schema is not None:
        schema = json.loads(str(params.json_schema))
        wrapped = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
        fields.update(guided_json=schema) if dialect == "fastdeploy" else fields.update(
            response_format=wrapped
        )
    return fields


_OFF = ("stop", "stop_token_ids", "logprobs", "ignore_eos")
_PLAIN = {"fastdeploy": "FastDeploy has no such setting", "openai": "the OpenAI API has no such setting"}
_WHY: Mapping[str, Mapping[str, str]] = {
    "ignore_eos": {
        "fastdeploy": "FastDeploy always ends at an end token",
        "openai": "servers always end at an end token",
    },
    "grammar": {
        "fastdeploy": "FastDeploy's grammars are in another language than Lark",
        "openai": "the OpenAI API has no grammars",
    },
}


def _check_values(params: SamplingParams, dialect: Dialect) -> None:
    if len(params.stop) > _STOPS[dialect]:
        raise UnsupportedError(
            f"stop: {len(params.stop)} strings; at most {_STOPS[dialect]} here, more with backend 'native'"
        )
    if params.logprobs > MAX_LOGPROBS:
        raise UnsupportedError(
            f"logprobs={params.logprobs}: at most {MAX_LOGPROBS} here; {_ALONE} give any number"
        )
    for name, (low, high) in _BOUNDS.items():
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            raise UnsupportedError(f"{name}={value}: must be from {low:g} to {high:g} here; {_ALONE}")
    if params.seed is not None and params.seed > MAX_SEED[dialect]:
        raise UnsupportedError(
            f"seed={params.seed}: seeds go up to {MAX_SEED[dialect]} here; {_ALONE} take any of 64 bits"
        )


def finish_reason(theirs: object) -> FinishReason | None:
    """Translate why an answer ended; None while it has not.

    Raises:
        KeyError: There is no such reason.
    """
    return None if theirs is None else FINISH[str(theirs)]
