"""Hands a checkpoint's tensors to the extension module, which packs them one by one or maps what is packed already."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ernie_accel.architecture.multi_token import (
    EMB_NORM,
    HIDDEN_NORM,
    MTP_BLOCK,
    MTP_PREFIX,
    PROJECTION,
    check_multi_token,
)
from ernie_accel.checkpoint.base import Checkpoint, check_vector
from ernie_accel.checkpoint.packed import PackedCheckpoint, units
from ernie_accel.errors import CapacityError, CheckpointError
from ernie_accel.types import Progress

if TYPE_CHECKING:
    from ernie_accel import _native
    from ernie_accel.checkpoint.quantised import QuantisedCheckpoint

__all__ = [
    "TensorSource",
    "load_layer",
    "load_multi_token",
    "load_weights",
    "set_embedding",
    "set_head",
]


class TensorSource:
    """Reads tensors by name and counts the bytes that were read; matrices are codes where the checkpoint has them."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        quantised = hasattr(checkpoint, "matrix")
        self._quantised = cast("QuantisedCheckpoint", checkpoint) if quantised else None
        self._progress = progress
        self._done = 0
        info = checkpoint.info  # codes have one byte for each weight
        self._total = info.total_parameters if quantised else info.total_bytes

    def __call__(self, name: str) -> _native.Tensor:
        """Return a tensor that is never quantised."""
        from ernie_accel import _native

        tensor = self._checkpoint.tensor(name)
        check_vector(name, tensor)
        self._done += tensor.data.nbytes if self._quantised is None else tensor.data.size
        return _native.Tensor(tensor.data, tensor.dtype)

    def matrix(self, name: str) -> _native.Tensor:
        """Return a matrix that is multiplied; those of multi-token prediction are never in codes."""
        if self._quantised is None or name.startswith(MTP_PREFIX):
            return self(name)
        from ernie_accel import _native

        matrix = self._quantised.matrix(name)
        self._done += matrix.codes.nbytes
        return _native.Tensor.quantised(*matrix.parts)

    def report(self, *, end: bool = False) -> None:
        """Say how far it is."""
        if self._progress is not None:
            self._progress("load", self._total if end else min(self._done, self._total), self._total)


def load_weights(
    model: _native.Model, checkpoint: Checkpoint, progress: Progress | None, *, multi_token: bool = False
) -> None:
    """Set every weight of the text model. ``progress`` counts stored bytes.

    ``multi_token``: those of multi-token prediction too, which the model was made for then.

    Raises:
        CheckpointError: A tensor is missing or has the wrong shape.
        CapacityError: The system has no memory left.
    """
    source = TensorSource(checkpoint, progress)
    if multi_token:
        check_multi_token(checkpoint.config, checkpoint.info.name)
    try:
        if isinstance(checkpoint, PackedCheckpoint):
            _map_packed(model, checkpoint, source, multi_token)
        else:
            _pack_all(model, source)
            if multi_token:
                load_multi_token(model, source)
        if multi_token:
            _set_multi_token_norms(model, source)
        model.finish()
        source.report(end=True)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.info.name}: {error}") from error
    except MemoryError as error:
        raise CapacityError(
            f"{checkpoint.info.name}: the system has no memory left for the weights"
        ) from error


def _pack_all(model: _native.Model, source: TensorSource) -> None:
    if not source.config.tie_word_embeddings:
        set_embedding(model, source)
    set_head(model, source)
    model.set_final_norm(source("model.norm.weight"))
    source.report()
    for layer in range(source.config.num_hidden_layers):
        _set_norms(model, source, layer)
        load_layer(model, source, layer)


def _map_packed(
    model: _native.Model, checkpoint: PackedCheckpoint, source: TensorSource, multi_token: bool
) -> None:
    """Let the model read the panels where the file is mapped; norms and routers, which are small, are copied."""
    for unit in units(checkpoint.config, multi_token=multi_token):
        for slot in unit.slots:
            name, precision, group, exact, panels = checkpoint.packed(slot.name)
            model.set_packed(name, precision, group, list(exact), panels)
        if unit.layer is not None:
            _set_norms(model, source, unit.layer)
            if checkpoint.config.is_moe_layer(unit.layer):
                _set_router(model, source, unit.layer)
    model.set_final_norm(source("model.norm.weight"))


def set_embedding(model: _native.Model, source: TensorSource) -> None:
    """Pack the embedding of a model whose head is another matrix."""
    model.set_embedding(source("model.embed_tokens.weight"))


def set_head(model: _native.Model, source: TensorSource) -> None:
    """Pack the vocabulary head."""
    tied = source.config.tie_word_embeddings
    model.set_head(source.matrix("model.embed_tokens.weight" if tied else "lm_head.weight"))


def load_layer(model: _native.Model, source: TensorSource, layer: int) -> None:
    """Pack the matrices of a layer."""
    prefix = f"model.layers.{layer}"
    _load_attention(model, source, layer, prefix)
    if source.config.is_moe_layer(layer):
        _load_experts(model, source, layer, f"{prefix}.mlp")
    else:
        model.set_ffn(layer, *_ffn(source, f"{prefix}.mlp"))
    source.report()


def _load_attention(model: _native.Model, source: TensorSource, layer: int, prefix: str) -> None:
    q, k, v, o = (source.matrix(f"{prefix}.self_attn.{part}_proj.weight") for part in "qkvo")
    model.set_attention(layer, q, k, v, o)
    source.report()


def load_multi_token(model: _native.Model, source: TensorSource) -> None:
    """Pack the matrices of multi-token prediction; its layer comes after all others."""
    layer = source.config.num_hidden_layers
    model.set_multi_token(source.matrix(PROJECTION))
    _load_attention(model, source, layer, MTP_BLOCK)
    model.set_ffn(layer, *_ffn(source, f"{MTP_BLOCK}.mlp"))
    source.report()


def _set_multi_token_norms(model: _native.Model, source: TensorSource) -> None:
    _set_norms(model, source, source.config.num_hidden_layers, MTP_BLOCK)
    model.set_multi_token_norms(source(EMB_NORM), source(HIDDEN_NORM))


def _set_norms(model: _native.Model, source: TensorSource, layer: int, prefix: str = "") -> None:
    prefix = prefix or f"model.layers.{layer}"
    model.set_norms(
        layer, source(f"{prefix}.input_layernorm.weight"), source(f"{prefix}.post_attention_layernorm.weight")
    )


def _set_router(model: _native.Model, source: TensorSource, layer: int) -> None:
    prefix = f"model.layers.{layer}.mlp"
    model.set_router(
        layer, source(f"{prefix}.gate.weight"), source(f"{prefix}.moe_statics.e_score_correction_bias")
    )


def _load_experts(model: _native.Model, source: TensorSource, layer: int, prefix: str) -> None:
    _set_router(model, source, layer)
    for expert in range(source.config.moe_num_experts):
        model.set_expert(layer, expert, *_ffn(source, f"{prefix}.experts.{expert}"))
        source.report()
    if source.config.moe_num_shared_experts:
        model.set_ffn(layer, *_ffn(source, f"{prefix}.shared_experts"))


def _ffn(source: TensorSource, prefix: str) -> tuple[_native.Tensor, _native.Tensor, _native.Tensor]:
    gate, up, down = (source.matrix(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down"))
    return gate, up, down
