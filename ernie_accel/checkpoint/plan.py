"""From the names in files to the tensors of the architecture: the layout, what is set aside, nothing left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ernie_accel.architecture import ModelConfig, TensorSpec, tensor_specs
from ernie_accel.architecture.ernie4_5 import HEAD
from ernie_accel.architecture.ernie4_5_moe import BIAS_SUFFIX, ROUTER_SUFFIX
from ernie_accel.architecture.support import unquantized_advice
from ernie_accel.checkpoint.base import StoredDtype
from ernie_accel.checkpoint.files import Located, name_some
from ernie_accel.checkpoint.layouts import (
    FUSED_UPRIGHT,
    PADDLE,
    PT,
    Layout,
    Part,
    bare_name,
    full_name,
    stored_parts,
)
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError

__all__ = ["STORED_DTYPES", "Placed", "Plan", "Stored", "check_tensor", "make_plan"]

STORED_DTYPES: Mapping[str, StoredDtype] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    # Paddle's writer sees bf16 as NumPy's uint16: the same bits, never numbers
    "U16": "bfloat16",
}

_VISION = ("resampler_model.", "vision_model.")
_QUANTIZED = (
    # (how a tensor's name ends, the publications that have such tensors)
    (".super_scales", "2-bit (WINT2, as in the -2Bits repositories)"),
    (".code_scale", "2-bit (WINT2, as in the -2Bits repositories)"),
    (".code_zp", "2-bit (WINT2, as in the -2Bits repositories)"),
    (".weight_scale_inv", "FP8 in blocks"),
    (".quant_weight", "integers (W4A8, as in the -W4A8C8 repositories, or WINT8)"),
    (".weight_scale", "integers (W4A8, as in the -W4A8C8 repositories, or WINT8)"),
    (".activation_scale", "integers (W4A8, as in the -W4A8C8 repositories, or WINT8)"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
)

Stored = Mapping[str, Located]


class Placed(NamedTuple):
    """A tensor of the architecture: the stored one by its name in the file, and which part of it."""

    name: str
    located: Located
    part: Part


class Plan(NamedTuple):
    """Every tensor of the architecture, by its ``-PT`` name.

    ``zero_biases`` are correction bias tensors that the model was trained without.
    """

    specs: Mapping[str, TensorSpec]
    placed: Mapping[str, Placed]
    zero_biases: tuple[str, ...]
    set_aside: tuple[str, ...]
    layout: Layout


def make_plan(config: ModelConfig, stored: Stored, directory: Path) -> Plan:
    """Match stored tensors with those of the architecture; each is consumed exactly once.

    Raises:
        CheckpointError: A tensor is missing, is left over, or has the wrong shape or dtype; the message names it.
        UnsupportedCheckpointError: The weights are quantized.
    """
    _refuse_quantized(stored, directory)
    set_aside = {name for name in stored if _is_set_aside(bare_name(name), config)}
    by_bare = _by_bare_name(stored.keys() - set_aside, directory)
    _check_moe_layers(config, by_bare, directory)
    specs = tensor_specs(config)
    layout = _find_layout(specs, {bare: stored[name].entry.shape for bare, name in by_bare.items()})
    parts = stored_parts(specs, layout)
    zero_biases = _zero_biases(config, parts, by_bare, directory)
    parts = {name: part for name, part in parts.items() if name not in zero_biases}
    _check_complete(parts, by_bare, layout, directory)
    placed = {
        name: Placed(by_bare[part.stored], stored[by_bare[part.stored]], part) for name, part in parts.items()
    }
    for name, item in placed.items():
        check_tensor(specs[name], item)
    return Plan(specs, placed, zero_biases, tuple(sorted(set_aside)), layout)


def _refuse_quantized(stored: Stored, directory: Path) -> None:
    eight_bit = [name for name, (_, entry) in stored.items() if entry.dtype.startswith("F8_")]
    if eight_bit:
        raise UnsupportedCheckpointError(
            f"{directory}: the weights are quantized as FP8 ({name_some(eight_bit, 1)}); {unquantized_advice()}"
        )
    for suffix, kind in _QUANTIZED:
        found = [name for name in stored if name.endswith(suffix)]
        if found:
            raise UnsupportedCheckpointError(
                f"{directory}: the weights are quantized as {kind} ({name_some(found, 1)}); {unquantized_advice()}"
            )


def _is_set_aside(bare: str, config: ModelConfig) -> bool:
    tied_copy = bare == HEAD and config.tie_word_embeddings
    multi_token = bare.startswith("mtp_")
    return tied_copy or multi_token or bare.startswith(_VISION) or bare.endswith(".weight_1")


def _by_bare_name(stored: Iterable[str], directory: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in sorted(stored):
        other = names.setdefault(bare_name(name), name)
        if other != name:
            raise CheckpointError(
                f"{directory}: tensors {other} and {name} are the same one under two prefixes"
            )
    return names


def _check_moe_layers(config: ModelConfig, by_bare: Mapping[str, str], directory: Path) -> None:
    for index in range(config.num_hidden_layers):
        stored = f"layers.{index}{ROUTER_SUFFIX}" in by_bare
        if stored != config.is_moe_layer(index):
            has, says = ("a router", "dense") if stored else ("no router", "mixture of experts")
            raise CheckpointError(
                f"{directory}: layer {index} has {has} (model.layers.{index}{ROUTER_SUFFIX}), "
                f"but by config.json it is {says}"
            )


def _find_layout(specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Decide for the whole file set: single matrices may be square, so no tensor can be judged by itself."""
    if not any(name.endswith((".qkv_proj.weight", ".up_gate_proj.weight")) for name in shapes):
        return PT
    first = {name: spec for name, spec in specs.items() if name.startswith("model.layers.0.")}
    turned = {part.stored: part.shape for part in stored_parts(first, PADDLE).values()}
    upright = {part.stored: part.shape for part in stored_parts(first, FUSED_UPRIGHT).values()}
    # attention first: it is never square in a published model
    for name in sorted(turned, key=lambda item: not item.endswith(".qkv_proj.weight")):
        if turned[name] != upright[name] and shapes.get(name) in (turned[name], upright[name]):
            return PADDLE if shapes[name] == turned[name] else FUSED_UPRIGHT
    return PADDLE


def _zero_biases(
    config: ModelConfig, parts: Mapping[str, Part], by_bare: Mapping[str, str], directory: Path
) -> tuple[str, ...]:
    biases = [name for name in parts if name.endswith(BIAS_SUFFIX)]
    missing = [name for name in biases if parts[name].stored not in by_bare]
    if not missing:
        return ()
    # a bias that was lost changes the chosen experts of every fourth token, without any other sign
    if config.moe_use_aux_free is not False or len(missing) < len(biases):
        raise CheckpointError(
            f"{directory}: correction biases are missing: {name_some(missing)}; only a model that was trained without "
            "them may lack them, all of them, and then config.json says moe_use_aux_free: false"
        )
    return tuple(missing)


def _check_complete(
    parts: Mapping[str, Part], by_bare: Mapping[str, str], layout: Layout, directory: Path
) -> None:
    wanted = {part.stored for part in parts.values()}
    missing = {full_name(bare, layout) for bare in wanted - by_bare.keys()}
    left_over = {name for bare, name in by_bare.items() if bare not in wanted}
    if missing or left_over:
        lacks = f"misses tensors: {name_some(missing)}" if missing else ""
        extra = (
            f"holds tensors that this architecture does not have: {name_some(left_over)}" if left_over else ""
        )
        raise CheckpointError(f"{directory}: {'; '.join(filter(None, (lacks, extra)))}")


def check_tensor(spec: TensorSpec, placed: Placed) -> None:
    """Raise CheckpointError unless a stored tensor has the shape and a dtype that it must have."""
    entry, where = placed.located.entry, f"{placed.located.path}: tensor {placed.name!r}"
    if entry.shape != placed.part.shape:
        raise CheckpointError(
            f"{where}: shape {list(entry.shape)}: must be {list(placed.part.shape)} by the sizes in config.json"
        )
    if entry.dtype not in STORED_DTYPES:
        raise CheckpointError(f"{where}: dtype {entry.dtype}: must be one of {', '.join(STORED_DTYPES)}")
    if spec.dtype_rule == "float32" and entry.dtype != "F32":
        raise CheckpointError(
            f"{where}: dtype {entry.dtype}: must be F32, since 16 bits change which experts are chosen"
        )
