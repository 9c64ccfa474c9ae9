"""The text of an assistant's turn in ERNIE's Thinking format to its parts.

The turn, after the template's ``<think>`` and a line break: thoughts, ``</think>``, then ``<response>`` answer
``</response>`` or blocks of ``<tool_call>`` JSON ``</tool_call>``. Text of any other kind is an answer as a whole, and
nothing that a model writes is an error: what cannot be read stays in the answer.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ernie_accel.reply import Reply, ToolCall

__all__ = ["MARKS", "THINK", "parse_reply"]

THINK = "<think>"
MARKS = frozenset({THINK, "</think>", "<response>", "</response>", "<tool_call>", "</tool_call>"})
"""What divides a turn. A vocabulary may have them as special tokens or as text."""

_OPENING = re.compile(r"<response>|<tool_call>")
_SPACE = re.compile(r"\s*")
_CLOSED = re.compile(r"\s*</tool_call>")


def parse_reply(text: str, *, in_thought: bool) -> Reply:
    """Divide a turn.

    Args:
        text: What the model wrote.
        in_thought: Whether the prompt ended within a thought, which ``text`` goes on with.
    """
    thinking, rest = _thoughts(text, in_thought)
    content, calls = _answer(rest)
    untouched = content == text  # no part of this format in it, so its edges are the model's own
    return Reply(
        content=content if untouched else content.strip(),
        thinking=thinking,
        tool_calls=tuple(calls),
        text=text,
    )


def _thoughts(text: str, in_thought: bool) -> tuple[str | None, str]:
    """What comes before ``</think>``; all of it, if the model did not get that far."""
    start = text.lstrip()
    if start.startswith(THINK):
        text, in_thought = start[len(THINK) :], True
    before, closing, after = text.partition("</think>")
    if closing:
        return before.strip(), after
    return (text.strip(), "") if in_thought else (None, text)


def _answer(text: str) -> tuple[str, list[ToolCall]]:
    """The text without the marks of a response and without tool calls that can be read; and those calls."""
    kept: list[str] = []
    calls: list[ToolCall] = []
    position = 0  # up to here everything is in ``kept`` or left out
    search = 0
    while (mark := _OPENING.search(text, search)) is not None:
        if mark[0] == "<response>":
            inner, closing, _ = text[mark.end() :].partition("</response>")
            kept += [text[position : mark.start()], inner]
            position = search = mark.end() + len(inner) + len(closing)
            continue
        call, search = _tool_call(text, mark.end())
        if call is not None:
            calls.append(call)
            kept.append(text[position : mark.start()])
            position = search
    kept.append(text[position:])
    return "".join(kept), calls


def _tool_call(text: str, start: int) -> tuple[ToolCall | None, int]:
    """The call whose JSON begins at ``start``, and where its block ends; None if it cannot be read."""
    begin = _SPACE.match(text, start)
    assert begin is not None, "no space at all matches too"
    try:
        value, end = _DECODER.raw_decode(text, begin.end())
    except (ValueError, RecursionError):
        return None, start
    closing = _CLOSED.match(text, end)
    call = _call_of(value)
    return (None, start) if closing is None or call is None else (call, closing.end())


def _call_of(value: Any) -> ToolCall | None:
    """``{"name": ..., "arguments": {...}}``; arguments may be JSON text of an object, as some models write them."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
