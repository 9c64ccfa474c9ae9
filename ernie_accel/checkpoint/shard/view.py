"""What one rank holds of an open checkpoint, without writing it: for ranks that run where the checkpoint lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ernie_accel.architecture import tensor_specs
from ernie_accel.architecture.split import Division, check_division, rank_config, share
from ernie_accel.checkpoint.base import Checkpoint, Tensor
from ernie_accel.errors import CheckpointError

__all__ = ["RankView"]


class RankView:
    """A checkpoint of one rank's part, experts cut; tensors are views where that can be.

    Embedding and head have one row of zeros more than ``rank_config`` says, after the padding: a token of another rank
    is looked up there, so that the sum over the ranks is its row.

    Raises ArgumentError if the model cannot be divided like that.
    """

    directory = None
    generation_config: Mapping[str, Any] = {}

    def __init__(self, checkpoint: Checkpoint, ranks: int, rank: int) -> None:
        self._checkpoint, self._division, self._rank = checkpoint, Division(ranks), rank
        check_division(checkpoint.config, self._division)
        self._specs = tensor_specs(checkpoint.config)
        part = rank_config(checkpoint.config, ranks)
        self.config = replace(part, vocab_size=part.vocab_size + 1)
        self.info = checkpoint.info

    def tensor(self, name: str) -> Tensor:
        """Return the rank's part of the tensor of that ``-PT`` name. Raises as the checkpoint does."""
        if name not in self._specs:
            raise CheckpointError(f"{self.info.name}: there is no tensor {name!r}")
        data, dtype = self._checkpoint.tensor(name)
        spec = self._specs[name]
        part = share(self._checkpoint.config, self._division, name, spec, self._rank)
        assert part is not None  # experts are cut
        data = data[part.start : part.stop] if part.axis == 0 else data[:, part.start : part.stop]
        if spec.role in ("embedding", "head"):
            zeros = np.zeros((part.padding + 1, *data.shape[1:]), data.dtype)
            data = np.concatenate([data, zeros])
        return Tensor(data, dtype)

    def close(self) -> None:
        """Leave the checkpoint to whoever opened it."""
