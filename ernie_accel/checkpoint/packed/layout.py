"""What the packed weights of a model consist of: which matrices, in which order, of how many bytes.

The layout of panels is that of ``csrc/kernels/linear/linear.h``, and the names are those of ``csrc/model/weights.h``;
a test compares both with the native core. Panels are the same bytes for every instruction set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ernie_accel.architecture import ModelConfig, TensorSpec, multi_token_specs, tensor_specs
from ernie_accel.architecture.multi_token import MTP_BLOCK, PROJECTION
from ernie_accel.architecture.spec import Role
from ernie_accel.checkpoint.quantised import SUB_COLUMNS, ActivationGroups

__all__ = [
    "ALIGNMENT",
    "MAX_EXACT",
    "MAX_GROUP",
    "PLANES",
    "QUANTISED",
    "Kind",
    "PackedMatrix",
    "Slot",
    "Unit",
    "allowed_precisions",
    "matrix_bytes",
    "plain_tensors",
    "units",
]

ALIGNMENT = 64
"""Of every matrix in the file and in memory, bytes: a line of a panel."""

MAX_EXACT = 64
"""Exact columns of one matrix."""

MAX_GROUP = 256
"""Columns that share a scale."""

QUANTISED = ("int8", "int4")
"""Precisions of a quantised model."""

PLANES = {"nested8": 4, "nested6": 2}
"""Matrices in two planes, and the bits of a code in the lower one."""

_PANEL_ROWS = 16

Kind = Literal["body", "down", "head", "embedding"]
"""What a matrix is for: it decides which precisions it may have and how its input is quantised."""


class PackedMatrix(NamedTuple):
    """A matrix as it lies packed.

    ``group`` is the number of columns that share a scale, 0 where it is not quantised; ``exact`` are its columns that
    are kept in bfloat16, ascending; ``panels`` is uint8 [bytes].
    """

    name: str
    precision: str
    group: int
    exact: tuple[int, ...]
    panels: npt.NDArray[np.uint8]


class Slot(NamedTuple):
    """A packed matrix that a model must have; rows and columns are padded to multiples of 16.

    ``tensors`` are the ``-PT`` names of what it is made of, ``weights`` their number of values.
    """

    name: str
    kind: Kind
    role: Role
    rows: int
    cols: int
    tensors: tuple[str, ...]
    weights: int


class Unit(NamedTuple):
    """What is packed, written and resumed together: the embedding, a layer, the head, or multi-token prediction.

    ``layer`` is None outside the layers. ``tensors`` are plain float32 tensors by their ``-PT`` names.
    """

    name: str
    layer: int | None
    slots: tuple[Slot, ...]
    tensors: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Number of values of its matrices, a byte each as codes: what progress counts."""
        return sum(slot.weights for slot in self.slots)


def matrix_bytes(slot: Slot, precision: str, group: int, exact: int) -> int:
    """Bytes of all panels of a matrix, by the layout in ``csrc/kernels/linear/linear.h``."""
    panels = slot.rows // _PANEL_ROWS
    if precision == "fp32":
        return panels * slot.cols * _PANEL_ROWS * 4
    if precision == "bf16":
        return panels * _up(slot.cols, 32) * _PANEL_ROWS * 2
    scales = _up(-(-slot.cols // group) * _PANEL_ROWS * 2, ALIGNMENT)
    subs = -(-slot.cols // (8 * SUB_COLUMNS)) if precision == "int4" else 0
    weights = slot.cols // (4 if precision == "int8" else 8)
    weights += slot.cols * PLANES.get(precision, 0) // 32
    return panels * (scales + (exact // 2 + subs + weights) * ALIGNMENT)


def allowed_precisions(kind: Kind) -> tuple[str, ...]:
    """Precisions that a matrix of a quantised model may have."""
    return ("bf16",) if kind == "embedding" else (*QUANTISED, *PLANES)


def activation_group(groups: ActivationGroups, kind: Kind) -> int:
    """Columns of the matrix's input that share a scale; 0 for the embedding, which is looked up and not multiplied."""
    return {"body": groups.body, "down": groups.down, "head": groups.head, "embedding": 0}[kind]


def plain_tensors(config: ModelConfig, *, multi_token: bool = False) -> dict[str, TensorSpec]:
    """Tensors that are stored as float32: norms, router and its correction bias."""
    plain = {name: spec for name, spec in tensor_specs(config).items() if spec.role in ("norm", "router")}
    return {**plain, **_multi_token_norms(config)} if multi_token else plain


def units(config: ModelConfig, *, multi_token: bool = False) -> list[Unit]:
    """Return everything that a packed file of the model holds, in the order in which a step reads it.

    ``multi_token``: with what multi-token prediction has, which is no layer and comes last.
    """
    specs = tensor_specs(config)
    plain = plain_tensors(config)
    made = [] if config.tie_word_embeddings else [Unit("embedding", None, (_embedding(config, specs),), ())]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        tensors = tuple(name for name in plain if name.startswith(prefix))
        made.append(Unit(f"layers.{layer}", layer, tuple(_layer(config, specs, layer)), tensors))
    made.append(Unit("head", None, (_head(config, specs),), ("model.norm.weight",)))
    if multi_token:
        made.append(Unit("mtp", None, tuple(_multi_token(config)), tuple(_multi_token_norms(config))))
    return made


def _multi_token_norms(config: ModelConfig) -> Specs:
    return {name: spec for name, spec in multi_token_specs(config).items() if spec.role == "norm"}


def _multi_token(config: ModelConfig) -> Iterator[Slot]:
    specs, hidden = multi_token_specs(config), config.hidden_size
    # both halves of its columns are padded
    yield _slot("mtp.projection", "body", hidden, 2 * _up(hidden, 16), specs, (PROJECTION,))
    yield from _attention(config, specs, "mtp.", f"{MTP_BLOCK}.")
    yield from _ffn("mtp.", f"{MTP_BLOCK}.mlp.", hidden, config.intermediate_size, specs)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


Specs = dict[str, TensorSpec]


def _slot(name: str, kind: Kind, rows: int, cols: int, specs: Specs, tensors: tuple[str, ...]) -> Slot:
    weights = sum(specs[tensor].size for tensor in tensors)
    return Slot(name, kind, specs[tensors[0]].role, _up(rows, 16), _up(cols, 16), tensors, weights)


def _embedding(config: ModelConfig, specs: Specs) -> Slot:
    names = ("model.embed_tokens.weight",)
    return _slot("embedding", "embedding", config.vocab_size, config.hidden_size, specs, names)


def _head(config: ModelConfig, specs: Specs) -> Slot:
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return _slot("head", "head", config.vocab_size, config.hidden_size, specs, (name,))


def _layer(config: ModelConfig, specs: Specs, layer: int) -> Iterator[Slot]:
    at, prefix, hidden = f"layers.{layer}.", f"model.layers.{layer}.", config.hidden_size
    yield from _attention(config, specs, at, prefix)
    if not config.is_moe_layer(layer):
        yield from _ffn(at, f"{prefix}mlp.", hidden, config.intermediate_size, specs)
        return
    width = config.moe_intermediate_size
    for expert in range(config.moe_num_experts):
        yield from _ffn(f"{at}experts.{expert}.", f"{prefix}mlp.experts.{expert}.", hidden, width, specs)
    if config.moe_num_shared_experts:
        shared = width * config.moe_num_shared_experts
        yield from _ffn(at, f"{prefix}mlp.shared_experts.", hidden, shared, specs)


def _attention(config: ModelConfig, specs: Specs, at: str, prefix: str) -> Iterator[Slot]:
    head, hidden = _up(config.head_dim, 16), config.hidden_size
    heads, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    q, k, v, o = (f"{prefix}self_attn.{part}_proj.weight" for part in "qkvo")
    yield _slot(f"{at}qkv", "body", heads + 2 * kv, hidden, specs, (q, k, v))
    yield _slot(f"{at}o", "body", hidden, heads, specs, (o,))


def _ffn(at: str, prefix: str, hidden: int, width: int, specs: Specs) -> Iterator[Slot]:
    gate, up, down = (f"{prefix}{part}_proj.weight" for part in ("gate", "up", "down"))
    yield _slot(f"{at}gate_up", "body", 2 * _up(width, 16), hidden, specs, (gate, up))
    yield _slot(f"{at}down", "down", hidden, width, specs, (down,))
