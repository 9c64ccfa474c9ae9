"""What the rest of the library sees of a checkpoint: tensors by one set of names in one orientation.

Names and shapes are those of the published ``-PT`` layout whatever lies on disk: every matrix is ``[out, in]``, query,
key and value, gate and up are separate. A ``-Paddle`` checkpoint gives transposed and sliced views, not copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.errors import CheckpointError
from ernie_accel.types import ModelInfo

__all__ = ["Checkpoint", "StoredDtype", "Tensor", "check_vector", "has_multi_token", "to_float32"]

StoredDtype = Literal["float32", "float16", "bfloat16"]


class Tensor(NamedTuple):
    """A stored tensor: ``data`` is a read-only view, possibly strided.

    float32 and float16 have the NumPy dtype of that name; bfloat16, which NumPy lacks, is uint16 bit patterns.
    """

    data: npt.NDArray[Any]
    dtype: StoredDtype


def to_float32(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Return the tensor's values as a C-contiguous float32 array of its shape (a copy unless it is one already)."""
    if tensor.dtype == "bfloat16":
        bits = np.ascontiguousarray(tensor.data).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return np.ascontiguousarray(tensor.data, dtype=np.float32)


def has_multi_token(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says that ``tensor`` serves multi-token prediction (``multi_token``, False where absent)."""
    return bool(getattr(checkpoint, "multi_token", False))


def check_vector(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError if a tensor of one dimension, such as a norm's weight, holds NaN or infinity.

    Every token is multiplied by those, and looking costs nothing. Matrices are not looked at: a token that meets a bad
    value there fails when it is drawn.
    """
    if tensor.data.ndim != 1:
        return
    bad = np.flatnonzero(~np.isfinite(to_float32(tensor)))
    if len(bad):
        raise CheckpointError(
            f"{name}: holds NaN or infinity, first at index {bad[0]}; the file is damaged, or the weights are of a "
            "training that failed: get it again"
        )


class Checkpoint(Protocol):
    """An open checkpoint. Use it as a context manager, or call ``close``.

    One with tensors of multi-token prediction has an attribute ``multi_token`` that is True.
    """

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What the headers say."""
        ...

    @property
    def directory(self) -> Path | None:
        """Where tokenizer files lie; None for a checkpoint that is not on disk."""
        ...

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """generation_config.json, or {} where there is none."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of that ``-PT`` name. Raises CheckpointError if there is none."""
        ...

    def close(self) -> None:
        """Unmap the files. Views handed out before stay valid until they are dropped."""
        ...
