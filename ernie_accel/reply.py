"""What an assistant answered, in its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Reply", "ToolCall"]


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called: its name, and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The parts of an assistant's turn.

    Attributes:
        content: What is meant for the user; a tool call that is incomplete or malformed stays in it as it was written.
        thinking: The thoughts before it, None if the model has none.
        tool_calls: Functions to call, in order.
        text: The whole turn as the model wrote it.
    """

    content: str
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    text: str = field(repr=False, default="")

    def message(self) -> dict[str, Any]:
        """The turn as a message, to put behind the conversation; thoughts are left out, as templates want it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in self.tool_calls]
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return message
