"""Packed panels back to the codes that they were made of, exactly: what an interrupted quantization goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig, tensor_specs
from ernie_accel.checkpoint.packed.layout import ALIGNMENT, PLANES, PackedMatrix, Slot
from ernie_accel.checkpoint.quantised import SUB_COLUMNS, Bits, QuantisedMatrix

__all__ = ["unpack"]

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def unpack(config: ModelConfig, slot: Slot, packed: PackedMatrix) -> dict[str, QuantisedMatrix]:
    """Return the matrices, by their ``-PT`` names, that a quantised packed matrix was made of.

    The layout is that of ``csrc/kernels/linear/linear.h``. Head sizes must be multiples of 16, as codes need anyway.
    """
    plane = slot.rows * slot.cols * PLANES.get(packed.precision, 0) // 8
    upper, lower = np.split(packed.panels, [packed.panels.size - plane])
    panels = upper.reshape(slot.rows // 16, -1)
    exact_end = len(packed.exact) // 2 * ALIGNMENT
    groups = -(-slot.cols // packed.group)
    scales_end = exact_end + -(-groups * 32 // ALIGNMENT) * ALIGNMENT
    scales = panels[:, exact_end : exact_end + 32 * groups].copy().view(np.uint16).reshape(-1, groups, 16)
    parts: dict[str, Any] = {
        "exact_weights": _exact_weights(panels[:, :exact_end], len(packed.exact)),
        "scales": scales.transpose(0, 2, 1).reshape(slot.rows, groups),
        "subs": None,
    }
    if packed.precision == "int4":
        lines = -(-slot.cols // (8 * SUB_COLUMNS))
        subs_end = scales_end + lines * ALIGNMENT
        parts["subs"] = _nibbles(panels[:, scales_end:subs_end], interleaved=True)
        parts["codes"] = (_nibbles(panels[:, subs_end:], interleaved=False) - np.uint8(8)).view(np.int8)
    elif packed.precision == "int8":
        codes = panels[:, scales_end:].reshape(len(panels), -1, 16, 4).transpose(0, 2, 1, 3)
        parts["codes"] = (codes.reshape(slot.rows, -1) - np.uint8(128)).view(np.int8)
    else:
        high = _nibbles(panels[:, scales_end:], interleaved=False)
        parts["codes"] = _join_planes(high, lower.reshape(len(panels), -1), PLANES[packed.precision])
    bits = cast("Bits", int(packed.precision[-1]))
    exact = np.asarray(packed.exact, np.int32)
    specs = tensor_specs(config)
    return {
        name: _matrix(parts, rows, specs[name].shape[1], bits, packed.group, exact)
        for name, rows in _rows(config, slot, {name: specs[name].shape[0] for name in slot.tensors}).items()
    }


def _matrix(
    parts: Mapping[str, Any], rows: Rows, cols: int, bits: Bits, group: int, exact: npt.NDArray[np.int32]
) -> QuantisedMatrix:
    subs = parts["subs"]
    return QuantisedMatrix(
        bits=bits,
        group=group,
        codes=np.ascontiguousarray(parts["codes"][rows, :cols]),
        scales=np.ascontiguousarray(parts["scales"][rows, : -(-cols // group)]),
        subs=None if subs is None else np.ascontiguousarray(subs[rows, : -(-cols // SUB_COLUMNS)]),
        exact=exact,
        exact_weights=np.ascontiguousarray(parts["exact_weights"][rows]),
    )


def _exact_weights(lines: Bytes, count: int) -> npt.NDArray[np.uint16]:
    """Pairs of columns lie row by row: [panels, pair, row, 2] to [rows, columns]."""
    pairs = np.ascontiguousarray(lines).view(np.uint16).reshape(len(lines), count // 2, 16, 2)
    weights: npt.NDArray[np.uint16] = pairs.transpose(0, 2, 1, 3).reshape(len(lines) * 16, count)
    return weights


def _nibbles(lines: Bytes, *, interleaved: bool) -> Bytes:
    """Four bytes of every row a line, [panels, line, row, 4], to [rows, values].

    Interleaved: the low and high nibble of a byte are neighbours; else low nibbles come first, then the high ones.
    """
    bytes_ = lines.reshape(len(lines), -1, 16, 4).transpose(0, 2, 1, 3)
    both = np.stack((bytes_ & 15, bytes_ >> 4), axis=-1 if interleaved else -2)
    return both.reshape(len(lines) * 16, -1)


def _join_planes(high: Bytes, lines: Bytes, bits: int) -> npt.NDArray[np.int8]:
    """Codes of the upper four bits, [rows, cols], and lines of the lower ones, [panels, bytes]."""
    if bits == 4:
        low = _nibbles(lines, interleaved=False)
    else:  # bits 2j and 2j + 1 of a row's four bytes are columns 4j to 4j + 3
        bytes_ = lines.reshape(len(lines), -1, 16, 4).transpose(0, 2, 1, 3)
        low = np.stack([bytes_ >> 2 * j & 3 for j in range(4)], axis=-2).reshape(high.shape)
    codes: npt.NDArray[np.int8] = ((high << bits | low) - np.uint8(8 << bits)).view(np.int8)
    return codes


def _rows(config: ModelConfig, slot: Slot, sizes: Mapping[str, int]) -> dict[str, Rows]:
    """Which packed rows are those of each matrix, in order."""
    if slot.name.endswith(".gate_up"):  # 16 rows of one, 16 of the other
        gate, up = slot.tensors
        at = np.arange(sizes[gate])
        first = at // 16 * 32 + at % 16
        return {gate: first, up: first + 16}
    rows, start = {}, 0
    heads = slot.name.endswith(".qkv")
    for name in slot.tensors:
        at = np.arange(sizes[name])
        dim = config.head_dim if heads else sizes[name]
        padded = -(-dim // 16) * 16
        rows[name] = start + at // dim * padded + at % dim
        start += sizes[name] // dim * padded
    return rows
