from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_accel.engine.structured import Compiler, Constraint
from ernie_accel.testing.tokenizer import SAMPLE_TEXT, train_tokenizer
from ernie_accel.tokenizer import Tokenizer, load_tokenizer
from ernie_accel.types import SamplingParams

ROWS = 640
"""More rows than the tokenizer has ids, and no multiple of 32 would be needed."""


class Player:
    """Draws outputs uniformly among the tokens that a constraint allows."""

    def __init__(self, tokenizer: Tokenizer, rows: int = ROWS) -> None:
        self.tokenizer = tokenizer
        self.ends = frozenset(tokenizer.eos_ids)
        self.compiler = Compiler(tokenizer, rows)

    def constraint(self, *, ends: frozenset[int] | None = None, **fields: Any) -> Constraint:
        structure = SamplingParams(**fields).structure
        return self.compiler.constraint(structure, self.ends if ends is None else ends)

    def ids(self, constraint: Constraint, rng: random.Random, most: int = 500) -> list[int]:
        """One output; the end token is left out."""
        out: list[int] = []
        while not constraint.finished and len(out) < most:
            out += constraint.forced()
            if constraint.finished:
                break
            token = rng.choice(allowed(constraint))
            if token in self.ends:
                break
            constraint.accept(token)
            out.append(token)
        return out

    def text(self, seed: int = 0, **fields: Any) -> str:
        return self.tokenizer.decode(self.ids(self.constraint(**fields), random.Random(seed)))


def allowed(constraint: Constraint) -> list[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return [int(i) for i in np.flatnonzero(bits)]


def loaded(directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    directory = train_tokenizer(
        SAMPLE_TEXT, tmp_path_factory.mktemp("structured"), added_tokens={"<|LOC_0|>": 512}
    )
    return Player(loaded(directory))


@pytest.fixture
def player_of() -> Callable[[Tokenizer], Player]:
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    return Player


class Words:
    """A tokenizer of given pieces that cuts the longest first and cannot write anything else."""

    special_ids: frozenset[int] = frozenset({0})

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = [b"", *pieces]
        self.vocab_size = len(self.pieces)

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def encode(self, text: str) -> list[int]:
        return [0]  # something whose bytes are not the text's

    def id_of(self, piece: str) -> int | None:
        return self.pieces.index(piece.encode()) if piece.encode() in self.pieces else None
