"""The feed-forward half of a layer under calibration: one block, or experts of which each sees its own tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ernie_accel.arithmetic import route, softmax
from ernie_accel.checkpoint.base import Checkpoint, to_float32
from ernie_accel.quant.activations import mean_squares
from ernie_accel.quant.calculator import Array
from ernie_accel.quant.fit import Fitter
from ernie_accel.quant.forward import swiglu
from ernie_accel.quant.streams import Streams

__all__ = ["ENOUGH", "experts_through", "ffn_through", "read_matrices"]

ENOUGH = 128
"""Tokens that an expert must see to be fitted to them; with fewer it is rounded to nearest."""

Columns = npt.NDArray[np.int32]


def read_matrices(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Array]:
    """Return tensors as float32, by name."""
    return {name: to_float32(checkpoint.tensor(name)) for name in names}


def ffn_through(
    fitter: Fitter,
    checkpoint: Checkpoint,
    prefix: str,
    x: Streams,
    *,
    exact: Columns | None = None,
    norm: str | None = None,
) -> Streams:
    """Quantise a SwiGLU block and pass x [T, H] through it.

    ``exact`` is as in ``Fitter.through``, for gate and up; ``norm`` names the norm that x comes from if nothing but
    this block reads it.
    """
    weights = read_matrices(checkpoint, [f"{prefix}.{part}_proj.weight" for part in ("gate", "up")])
    if norm is not None:
        weights, x = fitter.smooth_norm("gate_up", weights, x, norm, to_float32(checkpoint.tensor(norm)))
    gate, up = fitter.through("gate_up", weights, x, exact)
    weights = read_matrices(checkpoint, [f"{prefix}.down_proj.weight"])
    weights, inner = fitter.smooth_rows(
        "down", weights, gate.with_others(swiglu, up), f"{prefix}.up_proj.weight"
    )
    return fitter.through("down", weights, inner)[0]


def experts_through(fitter: Fitter, checkpoint: Checkpoint, prefix: str, x: Streams) -> Streams:
    """Quantise the experts of a layer and pass x [T, H] through them.

    All read one input and so have the same exact columns. Our own stream decides who sees which token, as it will when
    the model runs.
    """
    config = checkpoint.config
    router = to_float32(checkpoint.tensor(f"{prefix}.gate.weight"))
    bias = to_float32(checkpoint.tensor(f"{prefix}.moe_statics.e_score_correction_bias")).reshape(-1)
    scores = fitter.calculator.multiply(x.ours, router)
    chosen, shares = route(softmax(scores), bias, config.moe_k, config.moe_norm_min)
    names = [f"{prefix}.experts.{e}" for e in range(config.moe_num_experts)]
    exact = _common_columns(fitter, checkpoint, names, x.ours)
    out = x.map(np.zeros_like)
    for index, name in enumerate(names):
        rows, slots = np.nonzero(chosen == index)
        share = shares[rows, slots, None]
        if len(rows) < ENOUGH:
            y = _nearest_through(fitter, checkpoint, name, x, rows, exact)
        else:
            y = ffn_through(fitter, checkpoint, name, x.map(lambda a, rows=rows: a[rows]), exact=exact)  # type: ignore[misc]
        out.ours[rows] += share * y.ours
        if out.ideal is not out.ours:
            out.ideal[rows] += share * y.ideal
    if config.moe_num_shared_experts:
        out = out.with_others(
            np.add, ffn_through(fitter, checkpoint, f"{prefix}.shared_experts", x, exact=exact)
        )
    return out


def _common_columns(fitter: Fitter, checkpoint: Checkpoint, names: list[str], x: Array) -> Columns:
    """Exact columns for gate and up of all experts: chosen by the first ones' weights, for 64 are slow to read."""
    weights = read_matrices(
        checkpoint, [f"{name}.{part}_proj.weight" for name in names[:4] for part in ("gate", "up")]
    )
    return fitter.exact_columns("gate_up", weights, x)


def _nearest_through(
    fitter: Fitter,
    checkpoint: Checkpoint,
    prefix: str,
    x: Streams,
    rows: npt.NDArray[np.int64],
    exact: Columns,
) -> Streams:
    """Round an expert that saw too little to nearest, and pass those few tokens through it."""
    gate_up = read_matrices(checkpoint, [f"{prefix}.{part}_proj.weight" for part in ("gate", "up")])
    down = read_matrices(checkpoint, [f"{prefix}.down_proj.weight"])
    fitter.nearest("gate_up", gate_up, exact=exact, weigh=mean_squares(x.ours))
    fitter.nearest("down", down)
    own = x.map(lambda a: a[rows])
    gate, up = fitter.passed("gate_up", gate_up, own)
    return fitter.passed("down", down, gate.with_others(swiglu, up))[0]
