"""Conversations to text and to ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ernie_accel.errors import ArgumentError, TokenizerError
from ernie_accel.tokenizer.builtin import builtin_template
from ernie_accel.tokenizer.encoder import Encoder
from ernie_accel.tokenizer.files import Settings
from ernie_accel.tokenizer.guard import Guard, strings_of
from ernie_accel.tokenizer.messages import check_messages, check_tools, check_variables
from ernie_accel.tokenizer.replies import THINK
from ernie_accel.tokenizer.specials import Specials

if TYPE_CHECKING:
    from ernie_accel.tokenizer.template import ChatTemplate

__all__ = ["Chat", "Conversation"]


@dataclass(frozen=True)
class Conversation:
    """What the caller gave, checked: JSON-like values only."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    add_generation_prompt: bool

    @classmethod
    def checked(
        cls,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
        add_generation_prompt: bool,
    ) -> Conversation:
        """Check and copy everything.

        Raises:
            ArgumentError: Something is not what a conversation can hold.
        """
        return cls(
            check_messages(messages), check_tools(tools), check_variables(variables), add_generation_prompt
        )

    def hidden(self, guard: Guard) -> Conversation:
        """The same with every string guarded."""
        return replace(
            self,
            messages=guard.hide(self.messages),
            tools=guard.hide(self.tools),
            variables=guard.hide(self.variables),
        )

    def without_role(self, role: str) -> Conversation:
        """The same without the messages of one role."""
        return replace(self, messages=[m for m in self.messages if m["role"] != role])


class Chat:
    """The chat format of one checkpoint: its own template, or the built-in one of its family."""

    def __init__(
        self, settings: Settings, specials: Specials, encoder: Encoder, id_of: Callable[[str], int | None]
    ) -> None:
        self._specials = specials
        self._encoder = encoder
        self._sources: Mapping[str, str] = settings.templates
        self._tokens: Mapping[str, str] = settings.tokens
        self._compiled: dict[str, ChatTemplate] = {}
        if not self._sources:
            self._sources = {"default": builtin_template(lambda mark: id_of(mark) is not None)}
            self._tokens = _with_turn_marks(settings.tokens, id_of)

    def mentions(self, token: str) -> bool:
        """Whether a template holds this text."""
        return any(token in source for source in self._sources.values())

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the words that begin the assistant's turn begin a thought too."""
        question = Conversation([{"role": "user", "content": "?"}], None, {}, True)
        try:
            return self.render(question).rstrip().endswith(THINK)
        except (ArgumentError, TokenizerError):
            return False  # it cannot be asked anything

    def render(self, conversation: Conversation) -> str:
        """Give the conversation as text."""
        template = self._template_for(conversation)
        return self._rendered(template, conversation)

    def encode(self, conversation: Conversation) -> list[int]:
        """Give the conversation as ids, special ones only from the template's own text."""
        template = self._template_for(conversation)
        given = [conversation.messages, conversation.tools, conversation.variables]
        occurring = [*strings_of(given), *template.strings, *self._tokens.values()]
        guard = Guard(self._specials.by_text, occurring)
        return self._ids_of(self._rendered(template, conversation.hidden(guard)), guard)

    def encode_continuation(self, conversation: Conversation) -> list[int] | None:
        """Give the ids of everything that comes after the last answer; None if the template does not leave that whole.

        In place of the answer one private character is rendered, and what stands behind it is taken.
        """
        template = self._template_for(conversation)
        answers = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        if not answers:
            return None
        given = [conversation.messages, conversation.tools, conversation.variables]
        occurring = [*strings_of(given), *template.strings, *self._tokens.values()]
        guard = Guard(self._specials.by_text, occurring)
        mark = Guard("\0", [*occurring, *guard.hidden]).hide("\0")
        hidden = conversation.hidden(guard)
        hidden.messages[answers[-1]]["content"] = mark
        _, found, after = self._rendered(template, hidden).partition(mark)
        if not found or mark in after:
            return None
        return self._ids_of(after, guard)

    def _ids_of(self, text: str, guard: Guard) -> list[int]:
        ids: list[int] = []
        for part, special_id in self._encoder.cut(text):
            ids += self._encoder.plain(guard.show(part)) if special_id is None else [special_id]
        return ids

    def _template_for(self, conversation: Conversation) -> ChatTemplate:
        name = "tool_use" if conversation.tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise TokenizerError(
                f"no chat template is called {name!r}; there are: {', '.join(self._sources)}"
            )
        template = self._compile(name)
        self._check_names(template, conversation)
        self._check_roles(template, conversation)
        return template

    def _compile(self, name: str) -> ChatTemplate:
        if name not in self._compiled:
            from ernie_accel.tokenizer.template import ChatTemplate

            self._compiled[name] = ChatTemplate(self._sources[name])
        return self._compiled[name]

    def _rendered(self, template: ChatTemplate, conversation: Conversation) -> str:
        return template.render(
            {
                **self._tokens,
                **conversation.variables,
                "messages": conversation.messages,
                "tools": conversation.tools,
                "documents": None,
                "add_generation_prompt": conversation.add_generation_prompt,
            }
        )

    def _check_names(self, template: ChatTemplate, conversation: Conversation) -> None:
        """Refuse what the template would not look at: it would be left out without a word."""
        if conversation.tools and "tools" not in template.names:
            raise ArgumentError("tools: the chat template of this checkpoint takes none; leave them out")
        for name in conversation.variables:
            if name not in template.names:
                raise ArgumentError(
                    f"variables: the chat template of this checkpoint has no {name!r}; it has: "
                    f"{', '.join(sorted(template.names))}"
                )

    def _check_roles(self, template: ChatTemplate, conversation: Conversation) -> None:
        speaking = {m["role"] for m in conversation.messages if m["content"].strip()}
        for role in sorted(speaking - set(template.strings)):
            if self._ignores(template, conversation, role):
                raise ArgumentError(
                    f"role {role!r}: the chat template of this checkpoint leaves such messages out"
                )

    def _ignores(self, template: ChatTemplate, conversation: Conversation, role: str) -> bool:
        """Whether messages of a role that the template does not name make no difference."""
        try:
            without = self._rendered(template, conversation.without_role(role))
        except TokenizerError:
            return False
        return without == self._rendered(template, conversation)


def _with_turn_marks(tokens: Mapping[str, str], id_of: Callable[[str], int | None]) -> dict[str, str]:
    """Token variables for a built-in template: ERNIE's marks, or the text's begin and end, or nothing.

    A mark that the vocabulary lacks would be written in letters, which no model has seen.
    """
    begin = ["<|begin_of_sentence|>", tokens.get("bos_token", ""), "<s>"]
    end = ["<|end_of_sentence|>", tokens.get("eos_token", ""), "</s>"]
    known = [next((mark for mark in marks if mark and id_of(mark) is not None), "") for marks in (begin, end)]
    return {**tokens, "cls_token": known[0], "sep_token": known[1]}
