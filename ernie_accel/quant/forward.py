"""The parts of a decoder layer that calibration runs one by one, over several sequences at once.

T is the number of tokens of all sequences together; every array is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture.config import ModelConfig
from ernie_accel.arithmetic import rotary_angles, rotate, silu, softmax
from ernie_accel.quant.calculator import Array, Calculator

__all__ = ["Attention", "swiglu"]

ROWS_AT_ONCE = 128

FAR = np.float32(-1e30)
"""Score of a key that lies in the future: its weight is 0."""


class Attention:
    """Rotation and causal attention for sequences of ``lengths`` tokens that lie behind one another."""

    def __init__(self, config: ModelConfig, lengths: Sequence[int], calculator: Calculator) -> None:
        self._config = config
        self._lengths = tuple(lengths)
        self._calculator = calculator
        positions = np.concatenate([np.arange(n) for n in lengths])
        self._angles = rotary_angles(positions, config.head_dim, config.rope_theta)

    @property
    def value_rows(self) -> npt.NDArray[np.int64]:
        """For each column of the result the row of ``v_proj`` that it is made of."""
        heads, d = self._config.num_attention_heads, self._config.head_dim
        group = heads // self._config.num_key_value_heads
        columns = np.arange(heads * d)
        return columns // d // group * d + columns % d

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        """Return [T, heads * d] for projected q [T, heads * d], k and v [T, kv_heads * d]."""
        shape = (len(q), -1, self._config.head_dim)
        q, k = rotate(q.reshape(shape), self._angles), rotate(k.reshape(shape), self._angles)
        out, at = np.empty_like(q), 0
        for n in self._lengths:
            rows = slice(at, at + n)
            out[rows] = self._one(q[rows], k[rows], v.reshape(shape)[rows])
            at += n
        return out.reshape(len(q), -1)

    def _one(self, q: Array, k: Array, v: Array) -> Array:
        """Attend within one sequence; the query heads of a key head are one product."""
        n, heads, d = q.shape
        group = heads // k.shape[1]
        future = np.arange(n) > np.arange(n)[:, None]
        out = np.empty_like(q)
        for j in range(k.shape[1]):
            own = slice(j * group, (j + 1) * group)
            queries = q[:, own].transpose(1, 0, 2).reshape(group * n, d)
            scores = self._calculator.multiply(queries, k[:, j]) * np.float32(d**-0.5)
            scores.reshape(group, n, n)[:, future] = FAR
            attended = self._calculator.multiply(softmax(scores), v[:, j].T)
            out[:, own] = attended.reshape(group, n, d).transpose(1, 0, 2)
        return out


def swiglu(gate: Array, up: Array) -> Array:
    """Return silu(gate) * up; some rows at a time, whose intermediate results stay in the cache."""
    out = np.empty_like(gate)
    for at in range(0, len(gate), ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        np.multiply(silu(gate[rows]), up[rows], out=out[rows])
    return out
