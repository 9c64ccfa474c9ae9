"""Log-probabilities as FastDeploy and servers with the OpenAI API give them, made into ours.

FastDeploy offline gives ids. Over HTTP tokens come as text, which is turned into ids where only one can be meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ernie_accel.errors import UnsupportedError
from ernie_accel.tokenizer.tokenizer import Tokenizer
from ernie_accel.types import TokenLogprob

__all__ = ["Names", "Shown", "of_rows", "shown"]

ROUNDING = 1e-3
"""How far above 0 a log-probability may be."""
_AS_ID = re.compile(r"token_id:(\d+)")
_AS_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")
_UNREADABLE = "\ufffd".encode()
"""What stands for bytes that are no text: any of them."""


def of_rows(ids: Sequence[int], rows: Sequence[Any], most: int) -> tuple[TokenLogprob, ...]:
    """Make them of FastDeploy's rows, one for each token: its own id and value first, then those of the most probable.

    Args:
        ids: The tokens.
        rows: For each its ids and its values.
        most: How many alternatives were asked for.

    Raises:
        ValueError: They are of other tokens, fewer, or no log-probabilities.
    """
    if len(rows) != len(ids):
        raise ValueError(f"{len(rows)} of {len(ids)} tokens have some")
    made = []
    for token, (names, values) in zip(ids, rows, strict=True):
        if list(names[:1]) != [token]:
            raise ValueError(f"token {token} has those of {list(names[:1])}")
        made.append(_made(token, values[0], list(zip(names[1:], values[1:], strict=True)), most))
    return tuple(made)


def _made(token: int, value: object, top: Sequence[tuple[int, object]], most: int) -> TokenLogprob:
    if len(top) < most:
        raise ValueError(f"{len(top)} alternatives where {most} were asked for")
    checked = sorted(((name, _checked(other)) for name, other in top), key=lambda pair: -pair[1])
    return TokenLogprob(token, _checked(value), tuple(checked[:most]))


def _checked(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value <= ROUNDING:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)


@dataclass(frozen=True)
class Shown:
    """A token as a server shows it.

    Attributes:
        text: Whatever stands for it.
        logprob: Its log-probability.
        data: Its bytes, where the server says them.
        token_id: Its id, where the server says it.
        top: The most probable, in any order.
    """

    text: str
    logprob: float
    data: bytes | None = None
    token_id: int | None = None
    top: tuple[Shown, ...] = ()

    @property
    def key(self) -> bytes:
        """The bytes that are shown."""
        return self.data or self.text.encode()


def shown(found: Mapping[str, Any] | None) -> tuple[Shown, ...]:
    """Read the field ``logprobs`` of a choice: that of chats (``content``) or that of completions (``tokens``).

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It is neither.
    """
    if found is None:
        return ()
    if "content" in found:
        return tuple(_entry(entry) for entry in found["content"] or ())
    tokens, values = found["tokens"] or (), found["token_logprobs"] or ()
    top = found.get("top_logprobs") or [{}] * len(tokens)
    if not len(tokens) == len(values) == len(top):
        raise ValueError(f"{len(tokens)} tokens, {len(values)} log-probabilities, {len(top)} lists of others")
    return tuple(
        Shown(_text(token), _checked(value), top=tuple(_pairs(others)))
        for token, value, others in zip(tokens, values, top, strict=True)
    )


def _entry(entry: Mapping[str, Any], *, top: bool = True) -> Shown:
    data, token_id = entry.get("bytes"), entry.get("id")
    others = entry.get("top_logprobs") or () if top else ()
    return Shown(
        _text(entry["token"]),
        _checked(entry["logprob"]),
        None if data is None else bytes(data),
        token_id if isinstance(token_id, int) and token_id >= 0 else None,
        tuple(_entry(other, top=False) for other in others),
    )


def _pairs(others: Mapping[str, Any] | None) -> Iterable[Shown]:
    return (Shown(_text(token), _checked(value)) for token, value in (others or {}).items())


def _text(token: object) -> str:
    if not isinstance(token, str):
        raise TypeError(f"a token that is no text, {token!r}")
    return token


class Names:
    """From what a server shows to ids.

    Args:
        tokenizer: The server's, None where there is none at hand.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def logprob(self, token: Shown, known: int | None, most: int) -> TokenLogprob:
        """Make ours of a token.

        Args:
            token: As it is shown.
            known: Its id, where that came beside.
            most: How many alternatives were asked for.

        Raises:
            UnsupportedError: An id does not follow from what is shown.
            ValueError: There are fewer alternatives.
        """
        own = self.id_of(token) if known is None else known
        best = sorted(token.top, key=lambda other: -other.logprob)[:most]
        top = [(own if _same(other, token) else self.id_of(other), other.logprob) for other in best]
        return _made(own, token.logprob, top, most)

    def id_of(self, token: Shown) -> int:
        """Find the id: the server says it, or only one token of the vocabulary is shown so.

        Raises:
            UnsupportedError: Neither.
        """
        if token.token_id is not None:
            return token.token_id
        if named := _AS_ID.fullmatch(token.text):
            return int(named[1])
        if self._tokenizer is None:
            raise UnsupportedError(
                f"logprobs: the server shows tokens as text ({token.text!r}), and only a tokenizer knows their ids: "
                f"give the directory of the server's tokenizer as source; {_OTHERS}"
            )
        piece = _piece(token.text)
        found = self._tokenizer.id_of(piece) if piece and _UNREADABLE not in piece.encode() else None
        if found is not None:
            return found
        readable = piece is None and _UNREADABLE not in token.key
        meant = self._meant.get(token.key, ()) if readable else ()
        if len(meant) == 1:
            return meant[0]
        which = f"any of the ids {', '.join(map(str, meant[:5]))}" if meant else "no token of this tokenizer"
        raise UnsupportedError(
            f"logprobs: the server shows a token as {token.text!r}, which is {which}; {_OTHERS}"
        )

    @cached_property
    def _meant(self) -> dict[bytes, tuple[int, ...]]:
        """Ids by the bytes that they may be shown as: many decoders leave a first space out."""
        found: dict[bytes, tuple[int, ...]] = {}
        assert self._tokenizer is not None
        for token in range(self._tokenizer.vocab_size):
            special = self._tokenizer.special_text(token)
            data = self._tokenizer.token_bytes(token) if special is None else special.encode()
            for form in {data, data.removeprefix(b" ")} - {b""}:
                found[form] = (*found.get(form, ()), token)
        return found


_OTHERS = (
    "a process group of FastDeploy gives ids, and so do servers that show token_id:N (vLLM: "
    "--return-tokens-as-token-ids); backends 'native' and 'reference' can"
)


def _same(other: Shown, token: Shown) -> bool:
    return other.key == token.key and other.logprob == token.logprob


def _piece(text: str) -> str | None:
    r"""Read ``bytes:\x3c\x30...``: so FastDeploy shows a token that is no text, spelled as in the vocabulary."""
    found = _AS_BYTES.fullmatch(text)
    if found is None:
        return None
    try:
        return bytes.fromhex(found[1].replace("\\x", "")).decode()
    except UnicodeDecodeError:
        return None
