"""The public tokenizer: text to ids, ids to text, messages to either."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ernie_accel.errors import ArgumentError
from ernie_accel.reply import Reply
from ernie_accel.tokenizer.chat import Chat, Conversation
from ernie_accel.tokenizer.encoder import Encoder
from ernie_accel.tokenizer.files import Settings
from ernie_accel.tokenizer.replies import MARKS, parse_reply
from ernie_accel.tokenizer.specials import find_specials
from ernie_accel.tokenizer.stream import IncrementalDecoder
from ernie_accel.tokenizer.vocabulary import Vocabulary

__all__ = ["Tokenizer"]

_TURN_END = "<|end_of_sentence|>"
_THINKING_TURN_END = "<|im_end|>"


class Tokenizer:
    """Text to ids and back, for one checkpoint. Safe to use from many threads; nothing in it changes.

    Text is encoded as it is: no space put in front, nothing stripped, no begin or end token added, and what reads like
    a special token stays plain text unless ``parse_special`` is true. The one exception is U+2581, which these
    vocabularies write for a space: it is read as a space, as in training.

    Attributes:
        bos_id: Begin-of-text id, if there is one.
        eos_ids: Ids that end a text or a turn, the checkpoint's own end token first.
        pad_id: Padding id, if there is one.
        special_ids: Ids that steer the model and are no text.
        vocab_size: Last id + 1. A model may have more rows than this: those are padding, and no text.
    """

    def __init__(self, vocabulary: Vocabulary, settings: Settings) -> None:
        self._vocabulary = vocabulary
        self._settings = settings
        self._specials = find_specials(vocabulary, settings)
        self._encoder = Encoder(vocabulary, self._specials)
        self._chat = Chat(settings, self._specials, self._encoder, self.id_of)
        self._data: dict[int, bytes] = {}
        self.vocab_size = max((vocabulary.size, *(i + 1 for i in self._specials.texts)))
        self.special_ids = self._specials.ids
        self.bos_id = self._named("bos_token", vocabulary.begin)
        self.pad_id = self._named("pad_token", None)
        self.eos_ids = self._end_ids()

    def __repr__(self) -> str:
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, bos_id={self.bos_id}, eos_ids={self.eos_ids}, "
            f"special={len(self.special_ids)})"
        )

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """Give the ids of a text.

        Args:
            text: Any text; "" gives no ids.
            add_bos: Put the begin-of-text id first.
            parse_special: Take the text of a special token (``</s>``, ``<|im_start|>``) for that token. Leave it off
                for text that others wrote.

        Raises:
            ArgumentError: The text is no string of characters, or there is no begin-of-text id to add.
        """
        if add_bos and self.bos_id is None:
            raise ArgumentError("add_bos=True: this tokenizer has no begin-of-text token; leave it off")
        ids = self._encoder.parsed(text) if parse_special else self._encoder.plain(text)
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Give the text of ids; bytes that are no UTF-8 become U+FFFD, one for each.

        Args:
            ids: Ids of this tokenizer.
            skip_special: Leave special tokens out instead of writing their text.

        Raises:
            ArgumentError: An id is not in [0, vocab_size), or it is no list of ids.
        """
        if not isinstance(ids, Iterable):
            raise ArgumentError(f"ids={ids!r}: must be a list of token ids; [{ids!r}] is one of them")
        stream = self.stream(skip_special=skip_special)
        text = "".join([stream.push(i) for i in ids])
        return text + stream.flush()

    def stream(self, *, skip_special: bool = True) -> IncrementalDecoder:
        """Start a decoder that takes one id at a time and never emits half a character."""
        return IncrementalDecoder(self, skip_special=skip_special)

    def apply_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation with the checkpoint's chat template, or the built-in one of its family.

        The text alone no longer tells the template's special tokens from a message that spells them: to make ids of a
        conversation, use ``encode_chat``.

        Args:
            messages: ``{"role": ..., "content": ...}``: role system, user, assistant or tool; content a string or a
                list of ``{"type": "text", "text": ...}`` parts. Further keys are there for the template.
            add_generation_prompt: End with the words that begin the assistant's turn.
            tools: JSON descriptions of functions, for templates that know tools.
            variables: Further variables of the template, such as ``{"enable_thinking": False}``.

        Raises:
            ArgumentError: A message, tool or variable is not one that can be rendered.
            TokenizerError: The template is damaged, refuses the messages, or takes too long.
        """
        return self._chat.render(Conversation.checked(messages, tools, variables, add_generation_prompt))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Render a conversation and encode it; only the template's own text makes special tokens.

        What the messages (tools, variables) hold is plain text, whatever it spells, so no message can end its turn or
        begin another. Arguments and errors are those of ``apply_template``.
        """
        return self._chat.encode(Conversation.checked(messages, tools, variables, add_generation_prompt))

    def encode_continuation(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int] | None:
        """Encode what a conversation adds behind its last assistant message: the end of that turn, and what follows.

        So the ids that a model has written can stay what they are, instead of being made again from their text. None
        where there is no assistant message, or the template writes it in another form. Arguments and errors are those
        of ``encode_chat``.
        """
        given = Conversation.checked(messages, tools, variables, add_generation_prompt)
        return self._chat.encode_continuation(given)

    @property
    def opens_thought(self) -> bool:
        """Whether the words with which the chat template begins the assistant's turn begin a thought too."""
        return self._chat.opens_thought

    def parse_reply(self, reply: str | Iterable[int]) -> Reply:
        """Divide an assistant's turn into thoughts, answer and tool calls, as the Thinking format writes them.

        Nothing that a model writes is an error: a tool call that is incomplete or malformed stays in the answer.

        Args:
            reply: What the model wrote behind the words that begin the assistant's turn: text, or better ids, since
                a vocabulary may have the marks of the format as special tokens, which text leaves out.

        Raises:
            ArgumentError: It is neither, or an id is not in [0, vocab_size).
        """
        if not isinstance(reply, Iterable) or isinstance(reply, (bytes, bytearray)):
            raise ArgumentError(f"reply={reply!r}: must be a text or token ids")
        text = reply if isinstance(reply, str) else self._with_marks(reply)
        return parse_reply(text, in_thought=self.opens_thought)

    def reply_of(self, ids: Sequence[int], text: str) -> Reply:
        """As ``parse_reply``, for a turn whose text is known too: that counts, unless it leaves marks out."""
        special = self.special_ids.intersection(ids)
        has_marks = any(self._specials.texts[i] in MARKS for i in special)
        return self.parse_reply(ids if has_marks else text)

    def _with_marks(self, ids: Iterable[int]) -> str:
        """Text of ids with those special tokens that divide a reply."""
        kept = [i for i in ids if (mark := self.special_text(i)) is None or mark in MARKS]
        return self.decode(kept, skip_special=False)

    def id_of(self, piece: str) -> int | None:
        """Give the id of a token by its text in the vocabulary (``"</s>"``, ``"\u2581the"``), None if there is none."""
        known = self._specials.by_text.get(piece, self._specials.words.get(piece))
        return self._vocabulary.find(piece) if known is None else known

    def token_text(self, token_id: int) -> str:
        """Give one token for the eye: text, a special token's name, or ``<0xE4>`` for part of a character."""
        special = self.special_text(token_id)
        if special is not None:
            return special
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def token_bytes(self, token_id: int) -> bytes:
        """Give the bytes that a token adds to a text: UTF-8, or part of a character; b"" for special tokens.

        Raises:
            ArgumentError: The id is not in [0, vocab_size).
        """
        known = self._data.get(token_id)
        if known is None:
            known = self._data[token_id] = self._find_bytes(self._checked(token_id))
        return known

    def special_text(self, token_id: int) -> str | None:
        """Give the text of a special token, None for any other.

        Raises:
            ArgumentError: The id is not in [0, vocab_size).
        """
        if token_id in self.special_ids:
            return self._specials.texts[token_id]
        self._checked(token_id)
        return None

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return b""
        content = self._specials.texts.get(token_id)
        if content is not None:
            return content.encode()
        held = token_id < self._vocabulary.size and self._vocabulary.pieces[token_id] is not None
        return self._vocabulary.data(token_id) if held else b""

    def _checked(self, token_id: int) -> int:
        try:
            index = operator.index(token_id)
        except TypeError:
            index = -1
        if not 0 <= index < self.vocab_size:
            raise ArgumentError(
                f"token id {token_id!r}: must be in [0, {self.vocab_size}), the ids of this tokenizer"
            )
        return index

    def _named(self, name: str, default: int | None) -> int | None:
        content = self._settings.tokens.get(name)
        return default if content is None else self.id_of(content)

    def _end_ids(self) -> tuple[int, ...]:
        """The end of text; then the end of a turn, which a model that was not tuned to the end may draw instead."""
        turn_ends = [_TURN_END, *([_THINKING_TURN_END] if self._chat.mentions(_THINKING_TURN_END) else [])]
        ids = [self._named("eos_token", None), self._vocabulary.end, *map(self.id_of, turn_ends)]
        return tuple(dict.fromkeys(i for i in ids if i is not None))
