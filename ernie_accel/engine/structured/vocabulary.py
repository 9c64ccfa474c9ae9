"""The tokens of a model as llguidance wants them: bytes by id, and how a text is cut into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

from ernie_accel.engine.structured.strings import Texts
from ernie_accel.errors import MissingExtraError
from ernie_accel.system import available_threads

__all__ = ["Pieces", "Vocabulary"]

MOST_THREADS = 8
"""That compute masks of a batch; they sleep meanwhile."""

_WHITE = r"[\x20\x0A\x0D\x09]+"
_SLICES = (
    _WHITE,
    *(rf'[^"\\\x00-\x1F\x7F]{{1,{most}}}' for most in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 30)),
    r'[^"\\\x00-\x1F\x7F]+',
)
"""Classes of tokens that a grammar allows or forbids together, mostly: text inside a JSON string, by its length. With
lengths in small steps the mask near the end of a bounded string costs half as much."""


class Pieces(Protocol):
    """What is needed of a tokenizer."""

    vocab_size: int
    special_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; b"" for special tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def id_of(self, piece: str) -> int | None:
        """The id of a token by its text, None if there is none."""


class Vocabulary:
    """The ids of a model that are text, and one more, ``end``, which stands for the end of the output.

    Special tokens and padding rows have no bytes here, so no grammar allows them. Bytes of byte-fallback tokens are
    part of a character like any others.

    Args:
        pieces: The tokenizer.
        size: Rows of the model's vocabulary; ids beyond are left out.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, pieces: Pieces, size: int) -> None:
        try:
            import llguidance
        except ImportError:
            raise MissingExtraError.of("structured", "json_schema, regex, grammar or choices") from None
        self.end = size
        known = range(min(size, pieces.vocab_size))
        self._tokens = [b"" if i in pieces.special_ids else pieces.token_bytes(i) for i in known]
        self._tokens += [b""] * (size - len(self._tokens))
        self.executor: Any = llguidance.LLExecutor(max(1, min(available_threads(), MOST_THREADS)))
        self.tokenizer = _tokenizer(self._tokens, _Cutter(pieces, self._tokens), _SLICES)

    @cached_property
    def texts(self) -> Texts:
        """Its tokens that are plain text within JSON strings, apart from the rest."""
        return Texts(self._tokens)

    @cached_property
    def rest_tokenizer(self) -> Any:
        """llguidance's table of ``texts.rest`` under the same ids; it cuts no text."""
        return _tokenizer(self.texts.rest, lambda text: [], ())


def _tokenizer(tokens: list[bytes], cut: Callable[[str], list[int]], slices: tuple[str, ...]) -> Any:
    import llguidance

    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Source([*tokens, b"<end>"], cut)), slices=list(slices)
    )


class _Source:
    """Names are those that llguidance asks for; the last token is the end."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], cut: Callable[[str], list[int]]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]
        self._cut = cut

    def __call__(self, text: object) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text is a string here")
        return self._cut(text)


class _Cutter:
    """Cuts a text into tokens whose bytes are the text's, as the tokenizer does wherever it changes nothing."""

    def __init__(self, pieces: Pieces, tokens: list[bytes]) -> None:
        self._pieces = pieces
        self._tokens = tokens
        self._by_bytes: dict[bytes, int] = {}

    def __call__(self, text: str) -> list[int]:
        data = text.encode()
        ids = self._pieces.encode(text)
        limit = len(self._tokens)
        same = all(i < limit for i in ids) and b"".join(self._tokens[i] for i in ids) == data
        return ids if same else self._longest(data)

    def _longest(self, data: bytes) -> list[int]:
        """The longest token first; stops where the vocabulary has none."""
        if not self._by_bytes:
            self._by_bytes = {token: i for i, token in reversed(list(enumerate(self._tokens))) if token}
            self._most = max(map(len, self._by_bytes), default=0)
        ids: list[int] = []
        while data:
            lengths = range(min(self._most, len(data)), 0, -1)
            length = next((n for n in lengths if data[:n] in self._by_bytes), 0)
            if length == 0:
                return ids
            ids.append(self._by_bytes[data[:length]])
            data = data[length:]
        return ids
