"""Names, shapes and dtypes of the graph's inputs and outputs: the contract between a written graph and who runs it.

B sequences of which each appends up to T tokens to a past that lies in C places, of which the first ``lengths[b]``
count. A shorter sequence is padded on the right: any id, positions that go on counting; what the graph computes there
means nothing. C and T, B, R and Q may differ in every call; C may be 0.

Inputs::

    ids          int64 [B, T]
    positions    int64 [B, T]              absolute, lengths[b] + 0, 1, 2, ...
    lengths      int64 [B]                 tokens of the past that count
    logit_rows   int64 [R]                 rows of the flattened [B * T] whose logits are wanted
    hidden_rows  int64 [Q]                 rows whose hidden states (after the final norm) are wanted
    past_key_i, past_value_i  [B, kv_heads, C, d]   of layer i, in ``cache_dtype``; finite everywhere

Outputs::

    logits   float32 [R, vocab_size]
    hidden   float32 [Q, hidden_size]
    new      [2 * layers, B, kv_heads, T, d] in ``cache_dtype``: keys of layer i at 2 * i, values at 2 * i + 1

Keys are rotated, and lie in the order of ``weights.py``: whoever keeps the cache copies rows and looks into none.
R and Q may be 0 on executors that say so; others are given one row and its answer is thrown away.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ernie_accel.errors import CheckpointError

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["VERSION", "Signature"]

VERSION = 1
"""Raised whenever a graph of an earlier version can no longer be run."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Sizes of one graph; what it is called with follows from them.

    Attributes:
        cache_dtype: NumPy name of the dtype of keys and values: ``"float32"`` or ``"float16"``.
        precision: Of the weights.
    """

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    precision: str
    cache_dtype: str = "float32"
    version: int = VERSION

    @classmethod
    def of(cls, config: ModelConfig, precision: str, cache_dtype: str = "float32") -> Signature:
        """Return the signature of a model."""
        return cls(
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            precision=precision,
            cache_dtype=cache_dtype,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> Signature:
        """Read what ``to_dict`` gave. Raises CheckpointError naming ``source``."""
        version = values.get("version")
        if version != VERSION:
            raise CheckpointError(
                f"{source}: the graph has version {version!r} and this release runs {VERSION}; export it again"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"{source}: {error}; export the graph again") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for a file."""
        return asdict(self)

    @property
    def past_names(self) -> tuple[str, ...]:
        """Names of the past inputs: key and value of layer 0, of layer 1, and so on; as the rows of ``new`` lie."""
        return tuple(f"past_{kind}_{layer}" for layer in range(self.layers) for kind in ("key", "value"))

    @property
    def input_names(self) -> tuple[str, ...]:
        """All inputs in the graph's order."""
        return ("ids", "positions", "lengths", "logit_rows", "hidden_rows", *self.past_names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs in the graph's order."""
        return ("logits", "hidden", "new")

    @property
    def cache_numpy(self) -> npt.DTypeLike:
        """The dtype of keys and values."""
        return np.dtype(self.cache_dtype)

    @property
    def token_bytes(self) -> int:
        """Bytes of the cache of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * np.dtype(self.cache_dtype).itemsize
