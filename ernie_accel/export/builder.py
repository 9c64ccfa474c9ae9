"""What a target has to offer so that ``step.py`` can write the decoder step for it.

``V`` is whatever a target calls a value. Activations are float32 [rows, width]; a writer may compute a product in less
and must give float32 back. ``int64`` values are ids, positions and shapes. Axes count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Axis", "Builder", "Weight"]

V = TypeVar("V")

Axis = int | str
"""A length: a number, or the name of one that differs from call to call."""


@dataclass(frozen=True)
class Weight:
    """A tensor of the model that is made when it is written, so that no more than one lies in memory.

    Attributes:
        name: Unique within the graph; the same name means the same tensor, which is written once.
        shape: Matrices are [out, in].
        load: Makes the values, float32 of that shape, C-contiguous.
        keep: Whether the values stay float32 whatever the precision: norms and routers.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], npt.NDArray[np.float32]]
    keep: bool = False


class Builder(Protocol[V]):
    """Writes one graph, operation by operation. Where the comment gives a formula, that is the whole meaning.

    Attributes:
        groups_rows: Whether the target has the operations under "Grouping", for which the data says how many rows a
            function gets, 0 among them. Then an expert computes the rows that chose it, otherwise every row.
    """

    groups_rows: bool

    def input(self, name: str, dtype: str, shape: Sequence[Axis]) -> V:
        """An input of the graph; ``dtype`` is a NumPy name."""
        ...

    def output(self, name: str, value: V, dtype: str, shape: Sequence[Axis]) -> None:
        """An output of the graph."""
        ...

    def constant(self, values: npt.NDArray[Any]) -> V:
        """A small array that is no parameter."""
        ...

    def parameter(self, weight: Weight) -> V:
        """A small parameter as it is, float32."""
        ...

    # Products with parameters.

    def embed(self, ids: V, table: Weight) -> V:
        """Rows of the table [vocab, H] at flat ids [n]: float32 [n, H]."""
        ...

    def linear(self, x: V, matrix: Weight) -> V:
        """x [n, in] times the transpose of the matrix [out, in]: float32 [n, out]."""
        ...

    def reduce(self, x: V) -> V:
        """The sum of x over the ranks that compute the model together; x where there is one."""
        ...

    def rms_norm(self, x: V, weight: Weight, eps: float) -> V:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        ...

    # Shapes.

    def reshape(self, x: V, shape: Sequence[int]) -> V:
        """Reshape; 0 keeps the length of the same axis of x, -1 (once) takes what is left."""
        ...

    def unflatten(self, x: V, like: V, tail: Sequence[int]) -> V:
        """Reshape x to the first two lengths of ``like`` and then ``tail``."""
        ...

    def transpose(self, x: V, order: Sequence[int]) -> V:
        """Permute the axes."""
        ...

    def concat(self, parts: Sequence[V], axis: int) -> V:
        """Join along an axis."""
        ...

    def stack(self, parts: Sequence[V]) -> V:
        """Join values of one shape along a new first axis."""
        ...

    def split(self, x: V, sizes: Sequence[int], axis: int) -> list[V]:
        """Cut an axis into parts of known sizes."""
        ...

    def split_at(self, x: V, point: V, axis: int) -> tuple[V, V]:
        """Cut an axis in two at an int64 [1] value."""
        ...

    def length(self, x: V, axis: int) -> V:
        """The length of one axis, int64 [1]."""
        ...

    def count(self, length: V) -> V:
        """0, 1, ... up to and without ``length`` (int64 [1]): int64 [length]."""
        ...

    # Arithmetic on equal shapes, or shapes that differ where one of them has length 1.

    def add(self, a: V, b: V) -> V:
        """a + b."""
        ...

    def subtract(self, a: V, b: V) -> V:
        """a - b."""
        ...

    def multiply(self, a: V, b: V) -> V:
        """a * b."""
        ...

    def divide(self, a: V, b: V) -> V:
        """a / b."""
        ...

    def maximum(self, a: V, b: V) -> V:
        """The greater of the two."""
        ...

    def sqrt(self, x: V) -> V:
        """Square root."""
        ...

    def sum(self, x: V, axis: int, keep: bool) -> V:
        """Sum over one axis, which stays with length 1 if ``keep``."""
        ...

    def cos(self, x: V) -> V:
        """Cosine, exact to float32 for arguments up to the context's length."""
        ...

    def sin(self, x: V) -> V:
        """Sine, as ``cos``."""
        ...

    def silu(self, x: V) -> V:
        """x * sigmoid(x)."""
        ...

    def softmax(self, x: V) -> V:
        """Softmax over the last axis, in float32."""
        ...

    def cast(self, x: V, dtype: str) -> V:
        """Convert to the NumPy dtype of that name."""
        ...

    def bias_where(self, allowed_low: V, allowed_high: V, strict: bool) -> V:
        """0 where low < high (``strict``) or low <= high, else -1e30: float32 of the broadcast shape; both int64."""
        ...

    def matmul(self, a: V, b: V, transpose_b: bool = False) -> V:
        """Matrix product over the last two axes, the axes before them broadcast; float32 whatever the inputs are."""
        ...

    # Rows and routing.

    def gather_rows(self, x: V, rows: V) -> V:
        """Rows of x [n, ...] at int64 [m]: [m, ...]."""
        ...

    def top_k(self, x: V, k: int) -> V:
        """Places of the k greatest of the last axis, greatest first, of equals the lower place: int64 [n, k]."""
        ...

    def take(self, x: V, places: V) -> V:
        """Values of x [n, m] at places [n, k]: [n, k]."""
        ...

    def scatter(self, like: V, places: V, values: V) -> V:
        """Zeros [n, m] of the shape of ``like`` with values [n, k] at places [n, k]."""
        ...

    # Grouping; called only where ``groups_rows``.

    def order(self, keys: V) -> V:
        """Places that sort int64 [n] in ascending order, equal ones as they stood: int64 [n]."""
        ...

    def by_group(self, x: V, keys: V, order: V, compute: Sequence[Callable[[V], V]]) -> V:
        """Compute each row of x [n, m] by the function of its key, and give results in the order of ``keys``.

        The rows lie sorted: row i of x belongs to ``keys[order[i]]``. A function is given all rows of its key at once;
        a key without any costs no product.

        Args:
            x: The sorted rows.
            keys: int64 [n], from 0 up to and without the number of functions.
            order: What ``order(keys)`` gives.
            compute: For each key, float32 [rows, m] to float32 [rows, m].
        """
        ...
