"""A quantised checkpoint that is cheap to make: nearest rounding, a few exact columns, unusual groups."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ernie_accel.checkpoint.base import Checkpoint, Tensor, to_float32
from ernie_accel.checkpoint.packed import units
from ernie_accel.checkpoint.packed.writer import PackedWriter
from ernie_accel.checkpoint.quantised import (
    ActivationGroups,
    Bits,
    QuantisedMatrix,
    bfloat16_bits,
    bfloat16_values,
)

GROUPS = ActivationGroups(body=32, down=16, head=64)


class StandIn:
    """Implements QuantisedCheckpoint over a plain checkpoint."""

    recipe = "nearest rounding of a test"
    activations = GROUPS

    def __init__(self, source: Checkpoint, precision: Literal["int8", "int4"]) -> None:
        self.source = source
        self.precision: Literal["int8", "int4"] = precision
        self.config, self.info, self.directory = source.config, source.info, source.directory
        self.generation_config = source.generation_config

    def tensor(self, name: str) -> Tensor:
        return self.source.tensor(name)

    def close(self) -> None:
        self.source.close()

    def matrix(self, name: str) -> QuantisedMatrix:
        values = to_float32(self.source.tensor(name))
        head = name in ("model.embed_tokens.weight", "lm_head.weight")
        group = GROUPS.head if head else GROUPS.down if ".down_proj" in name else GROUPS.body
        bits: Bits = 8 if self.precision == "int8" else 6 if head else 4
        return round_matrix(values, bits, group, () if head else (1, values.shape[1] - 3))


def round_matrix(values: Any, bits: Bits, group: int, exact: tuple[int, ...]) -> QuantisedMatrix:
    rows, cols = values.shape
    columns = np.array(exact, np.int32)
    rest = values.copy()
    rest[:, columns] = 0
    groups = -(-cols // group)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :cols] = rest
    top = np.abs(padded).reshape(rows, groups, group).max(axis=2)
    low, high = {8: (-127, 127), 6: (-32, 31), 4: (-8, 7)}[bits]
    scales = bfloat16_bits((top / (high * (15 if bits == 4 else 1)) + 1e-9).astype(np.float32))
    steps = np.repeat(bfloat16_values(scales), group, axis=1)[:, :cols]
    subs = np.full((rows, -(-cols // 16)), 15, np.uint8) if bits == 4 else None
    codes = np.clip(np.rint(rest / (steps * 15 if bits == 4 else steps)), low, high).astype(np.int8)
    return QuantisedMatrix(
        bits=bits,
        group=group,
        codes=codes,
        scales=scales,
        subs=subs,
        exact=columns,
        exact_weights=bfloat16_bits(np.ascontiguousarray(values[:, columns])),
    )


def write(source: Any, target: Any, precision: str = "int8", identity: dict[str, Any] | None = None) -> None:
    """Write a packed directory of a quantised or (by nearest rounding) plain checkpoint."""
    import json

    from ernie_accel.backends.base import LoadOptions
    from ernie_accel.backends.native.backend import NativeBackend

    packer = NativeBackend().packer(source, LoadOptions(precision=precision))  # type: ignore[arg-type]
    with PackedWriter(target, identity or {}) as writer:
        for unit in units(source.config):
            if unit.name not in writer.done:
                tensors = {name: to_float32(source.tensor(name)) for name in unit.tensors}
                writer.add(unit.name, packer.pack(unit), tensors)
        writer.seal(
            precision=precision,
            activations=getattr(source, "activations", ActivationGroups()),
            recipe=getattr(source, "recipe", "nearest rounding"),
            source=source.info.name,
            files={"config.json": json.dumps(source.config.to_dict()).encode()},
        )
        writer.publish()
