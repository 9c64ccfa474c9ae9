"""From what a caller gives to requests: texts become ids, values are checked, defaults are settled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ernie_accel.engine.defaults import settle
from ernie_accel.engine.request import Request, Turn, check_ids, check_priority, deadline_of
from ernie_accel.engine.structured import Compiler
from ernie_accel.errors import ArgumentError, ContextLengthError, TokenizerError
from ernie_accel.generation import UNDER_WAY, Ids, TextOrIds
from ernie_accel.loading import Loaded
from ernie_accel.progress import reporting
from ernie_accel.reply import Reply
from ernie_accel.types import Progress, SamplingParams

if TYPE_CHECKING:
    from ernie_accel.tokenizer import Tokenizer

__all__ = ["Asking"]

Read = TypeVar("Read")

MOST_IDS = 1 << 31
"""Stands for the size of a vocabulary that only a server knows."""


class Asking:
    """Makes the requests of one model. Any thread may use it.

    Attributes:
        vocab_size: Ids lie below this.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self._capabilities = loaded.engine.capabilities
        self.vocab_size = loaded.engine.info.vocab_size or MOST_IDS
        self._compiler = None if loaded.tokenizer is None else Compiler(loaded.tokenizer, self.vocab_size)

    def requests(
        self,
        prompts: Sequence[TextOrIds | Turn],
        params: SamplingParams,
        timeout: float | None,
        priority: int,
        *,
        turn: bool,
    ) -> list[Request]:
        """Make one request for each prompt; raise what is wrong with any of them, but for their structure."""
        self._check_params(params)
        check_priority(priority)
        arrival, deadline = time.perf_counter(), deadline_of(timeout)
        ends = frozenset(() if params.ignore_eos else self._loaded.end_ids) | frozenset(params.stop_token_ids)
        return [
            Request(
                **self._prompt(prompt, "prompt" if len(prompts) == 1 else f"prompt[{index}]"),
                params=settle(params, self._loaded.defaults, self._loaded.engine.info.max_seed),
                stop_ids=ends,
                arrival=arrival,
                priority=priority,
                deadline=deadline,
                parse=self._parse_reply if turn and self._tokenizer is not None else None,
            )
            for index, prompt in enumerate(prompts)
        ]

    def is_led(self, request: Request) -> bool:
        """Whether ``led`` has work to do, for up to some hundreds of milliseconds."""
        return bool(request.params.structure) and "structure" not in self._capabilities

    def led(self, request: Request) -> Request:
        """Return the request with the constraint that its structure asks for.

        Raises:
            ArgumentError: The structure has a mistake, or is too large.
            MissingExtraError: llguidance is not installed.
        """
        if not self.is_led(request):
            return request
        tokenizer = self.need_tokenizer("an output with a structure")
        assert self._compiler is not None, "there is one where there is a tokenizer"
        in_thought = request.parse is not None and tokenizer.opens_thought
        constraint = self._compiler.constraint(
            request.params.structure, request.stop_ids, in_thought=in_thought
        )
        return replace(request, constraint=constraint)

    def turn(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int] | Turn:
        """Return a conversation as ids, or as it is for an engine that renders it itself."""
        if self._tokenizer is None and "chat" in self._capabilities:
            from ernie_accel.tokenizer.messages import check_messages, check_tools

            return Turn(tuple(check_messages(messages)), tuple(check_tools(tools) or ()))
        return self.need_tokenizer("chat").encode_chat(messages, tools=tools)

    def begun_ids(self, text: TextOrIds, where: str) -> tuple[int, ...]:
        """Return ids as they are, those of a text after the begin token."""
        if isinstance(text, str):
            tokenizer = self.need_tokenizer("a text instead of ids")
            text = tokenizer.encode(text, add_bos=tokenizer.bos_id is not None)
        return self.checked(text, where)

    def in_parts(
        self,
        given: Sequence[TextOrIds],
        name: str,
        read: Callable[[list[tuple[int, ...]]], Read],
        progress: bool | Progress | None,
    ) -> list[Read]:
        """Give texts to the engine some at a time, all of them checked before, and say how far it is."""
        texts = [self.begun_ids(text, f"{name}[{index}]") for index, text in enumerate(given)]
        self.check_lengths(texts, name)
        done = []
        with reporting(progress if len(texts) > 1 else False, unit="text") as report:
            for start in range(0, max(1, len(texts)), UNDER_WAY):
                done.append(read(texts[start : start + UNDER_WAY]))
                if report is not None:
                    report("texts", min(start + UNDER_WAY, len(texts)), len(texts))
        return done

    def check_lengths(self, texts: Sequence[Sequence[int]], name: str) -> None:
        """Raise ContextLengthError, with its place among several, for a text that the context does not hold."""
        for index, ids in enumerate(texts):
            try:
                self._loaded.engine.check(ids)
            except ContextLengthError as error:
                if len(texts) == 1:
                    raise
                raise ContextLengthError(f"{name}[{index}]: {error}") from None

    def checked(self, ids: Ids, where: str | None = None) -> tuple[int, ...]:
        """Return ids as plain ints; raise ArgumentError, with ``where`` in front, for any that the model lacks."""
        try:
            return check_ids(ids, self.vocab_size)
        except ArgumentError as error:
            if where is None:
                raise
            raise ArgumentError(f"{where}: {error}") from None

    def need_tokenizer(self, what: str) -> Tokenizer:
        """Return the tokenizer; raise TokenizerError, naming what needs one, if there is none."""
        if self._tokenizer is not None:
            return self._tokenizer
        loaded = self._loaded
        if loaded.config is None and loaded.directory is None:
            raise TokenizerError(
                f"{what} needs a tokenizer, and a server has it: give the checkpoint's directory as source"
            )
        raise TokenizerError(
            f"{what} needs a tokenizer, and there is neither tokenizer.model nor tokenizer.json in "
            f"{loaded.directory or 'a checkpoint in memory'}; put one there, or give token ids"
        )

    def _prompt(self, prompt: TextOrIds | Turn, where: str) -> dict[str, Any]:
        """Return the fields of a Request that say what is to be continued."""
        if isinstance(prompt, Turn):
            return {"token_ids": (), "turn": prompt}
        if isinstance(prompt, str) and self._tokenizer is None and "text" in self._capabilities:
            if not prompt:
                raise ArgumentError(f"{where}: is empty; give at least one character")
            return {"token_ids": (), "text": prompt}
        return {"token_ids": self._ids(prompt, where)}

    def _ids(self, prompt: TextOrIds, where: str) -> tuple[int, ...]:
        ids: Ids = self.need_tokenizer("generate(text)").encode(prompt) if isinstance(prompt, str) else prompt
        return self.checked(ids, where)

    def _parse_reply(self, ids: Sequence[int], text: str) -> Reply:
        return self.need_tokenizer("chat").reply_of(ids, text)

    def _check_params(self, params: SamplingParams) -> None:
        if params.stop and "text" not in self._capabilities:
            self.need_tokenizer("stop=...")
        if params.structure and "structure" not in self._capabilities:
            self.need_tokenizer("an output with a structure")
        for token_id in params.stop_token_ids:
            if token_id >= self.vocab_size:
                raise ArgumentError(
                    f"stop_token_ids: {token_id} is no token; ids go from 0 to {self.vocab_size - 1}"
                )
        if params.logprobs > self.vocab_size:
            raise ArgumentError(f"logprobs={params.logprobs}: the vocabulary has {self.vocab_size} ids")
