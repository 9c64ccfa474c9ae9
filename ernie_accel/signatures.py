"""Methods that take the fields of ``SamplingParams`` as keywords show them all, to ``help`` and to notebooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from ernie_accel.types import SamplingParams

__all__ = ["spelled_out"]

Method = TypeVar("Method", bound=Callable[..., Any])


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
            field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f"{field.type} | None"
        )
        for field in fields(SamplingParams)
    ]
    method.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
    return method
