"""The formulas of ERNIE 4.5 in NumPy and float32: what the reference backend and calibration compute with.

T is the number of tokens, d the head size; every matrix is [out, in].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["attend", "rms_norm", "rotary_angles", "rotate", "route", "silu", "softmax"]

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Zhang and Sennrich 2019, "Root mean square layer normalization": x / sqrt(mean(x^2) + eps) * weight, by rows."""
    y: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight
    return y


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        y: Array = x / (1 + np.exp(-x))
    return y


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    p: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def rotary_angles(positions: Ints, dim: int, theta: float) -> Array:
    """Angles [T, d/2] = position * theta^(-2i/d) in float32 (Su et al. 2021, "RoFormer")."""
    exponent: Array = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequency = np.asarray(1 / np.float32(theta) ** exponent, np.float32)
    return positions.astype(np.float32)[:, None] * frequency


def rotate(x: Array, angles: Array) -> Array:
    """Turn the adjacent pairs (2i, 2i+1) of every head of x, [T, heads, d], by angles[:, i]."""
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack((even * cos - odd * sin, odd * cos + even * sin), axis=-1).reshape(x.shape)


def attend(q: Array, k: Array, v: Array, first: int) -> Array:
    """Causal attention of queries [n, heads, d] at positions first.. over keys and values [first + n, kv_heads, d].

    Key and value head j serve the heads / kv_heads consecutive query heads from j * heads / kv_heads on.
    """
    n, heads, dim = q.shape
    group = heads // k.shape[1]
    future = np.arange(len(k)) > np.arange(first, first + n)[:, None]
    out = np.empty_like(q)
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T * np.float32(dim**-0.5)
        scores[future] = -np.inf
        out[:, head] = softmax(scores) @ v[:, head // group]
    return out


def route(probabilities: Array, bias: Array, k: int, norm_min: float) -> tuple[Ints, Array]:
    """Return chosen experts and their weights, both [T, k]; probabilities are [T, experts], bias [experts].

    The bias (Wang et al. 2024, "Auxiliary-loss-free load balancing") takes part in the choice only, and is added
    in float32: its size, 20 to 60, rounds the probabilities, and that rounding is part of the model. Of equal
    scores the lower index wins.
    """
    chosen = np.argsort(-(probabilities + bias), axis=-1, kind="stable")[:, :k]
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    return chosen, weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(norm_min))
