"""GGUF files for llama.cpp, written tensor by tensor from a synthetic checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gguf_names import ATTENTION, FFN, OUTER, layer_prefix
from ernie_accel.architecture import ModelConfig, tensor_specs
from ernie_accel.checkpoint.base import to_float32
from ernie_accel.testing import SyntheticCheckpoint

from .cache import cached
from .checkpoint import label, random_checkpoint
from .q6_k import quantise_q6_k

Array = npt.NDArray[Any]

PROJECTIONS = ("gate", "up", "down")


def gguf_model(shape: str, precision: str) -> Path:
    """Return the file of a shape in ``BF16``, ``Q8_0`` or ``Q4_0``, which is made if it is not there.

    A dense model is quantised by llama.cpp itself, which gives a Q4_0 file an embedding (and head) in Q6_K. Of a
    mixture of experts a bfloat16 file would be too large, so its Q4_0 blocks are written directly, in the same formats.
    """

    def make(path: Path) -> None:
        with random_checkpoint(shape) as checkpoint:
            moe = checkpoint.config.model_type == "ernie4_5_moe"
            if precision == "BF16" or (moe and precision == "Q4_0"):
                write(path, checkpoint, precision)
                return
        if moe:
            raise SystemExit(f"error: {shape} exists as Q4_0 only; {precision} would not fit the memory")
        quantise(gguf_model(shape, "BF16"), path, precision)

    return cached(f"{label(shape)}-{precision}.gguf", make)


def quantise(source: Path, target: Path, precision: str) -> None:
    """Have llama.cpp quantise a bfloat16 file."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[
        precision
    ]
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if failed:
        raise SystemExit(f"error: llama.cpp does not quantise {source} to {precision}")


def write(path: Path, checkpoint: SyntheticCheckpoint, precision: str) -> None:
    """Write matrices in ``BF16`` or ``Q4_0`` (embedding Q6_K), norms and router in float32."""
    import gguf

    writer = gguf.GGUFWriter(path, checkpoint.config.model_type.replace("_moe", "-moe"))
    metadata(writer, checkpoint.config, precision)
    plan = list(tensors(checkpoint.config))
    kinds = {name: kind_of(name, precision) for name, _ in plan}
    for name, sources in plan:
        shape = stacked_shape(checkpoint, sources)
        rows = gguf.quant_shape_to_byte_shape(shape, kinds[name])
        # A shape in bytes is what the package takes for a type that NumPy does not know.
        writer.add_tensor_info(name, rows, np.dtype(np.uint8), int(np.prod(rows)), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, sources in plan:
        blocks = [encode(checkpoint, source, kinds[name]) for source in sources]
        writer.write_tensor_data(np.stack(blocks) if len(blocks) > 1 else blocks[0])
    writer.close()


def metadata(writer: Any, c: ModelConfig, precision: str) -> None:
    """Sizes and settings, under the names of llama.cpp. There is no vocabulary: token ids go in and out."""
    import gguf

    writer.add_file_type(
        {"BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}[precision]
    )
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    if c.moe_num_experts:
        writer.add_expert_count(c.moe_num_experts)
        writer.add_expert_used_count(c.moe_k)
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        writer.add_expert_shared_count(c.moe_num_shared_experts)
        writer.add_expert_shared_feed_forward_length(c.moe_intermediate_size * c.moe_num_shared_experts)
        writer.add_leading_dense_block_count(c.moe_layer_start_index)
        writer.add_interleave_moe_layer_step(c.moe_layer_interval)


def tensors(c: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """Pair each tensor of the file with those of the checkpoint that it holds; experts of a layer are stacked."""
    yield from ((name, [source]) for source, name in OUTER.items())
    if not c.tie_word_embeddings:
        yield "output.weight", ["lm_head.weight"]
    for i in range(c.num_hidden_layers):
        ours, theirs = f"model.layers.{i}", layer_prefix(i)
        yield from (
            (f"{theirs}.{name}.weight", [f"{ours}.{source}.weight"]) for source, name in ATTENTION.items()
        )
        if not c.is_moe_layer(i):
            yield from (
                (f"{theirs}.{name}.weight", [f"{ours}.{source}.weight"]) for source, name in FFN.items()
            )
            continue
        yield f"{theirs}.ffn_gate_inp.weight", [f"{ours}.mlp.gate.weight"]
        yield f"{theirs}.exp_probs_b.bias", [f"{ours}.mlp.moe_statics.e_score_correction_bias"]
        for part in PROJECTIONS:
            experts = [f"{ours}.mlp.experts.{e}.{part}_proj.weight" for e in range(c.moe_num_experts)]
            yield f"{theirs}.ffn_{part}_exps.weight", experts
            if c.moe_num_shared_experts:
                yield f"{theirs}.ffn_{part}_shexp.weight", [f"{ours}.mlp.shared_experts.{part}_proj.weight"]


def kind_of(name: str, precision: str) -> Any:
    """Type of a tensor in the file."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if "norm" in name or name.endswith((".bias", "ffn_gate_inp.weight")):
        return kinds.F32
    if precision == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        return kinds.Q6_K
    return kinds[precision]


def stacked_shape(checkpoint: SyntheticCheckpoint, sources: list[str]) -> tuple[int, ...]:
    """Shape of a tensor of the file, in elements."""
    shape = tensor_specs(checkpoint.config)[sources[0]].shape
    if len(sources) > 1:
        return (len(sources), *shape)
    return shape[1:] if shape[0] == 1 else shape  # the correction bias is a row


def encode(checkpoint: SyntheticCheckpoint, source: str, kind: Any) -> Array:
    """One tensor of the checkpoint as the bytes that the file holds."""
    import gguf

    tensor = checkpoint.tensor(source)
    if kind == gguf.GGMLQuantizationType.BF16 and tensor.dtype == "bfloat16":
        return np.ascontiguousarray(tensor.data).view(np.uint8)
    values = to_float32(tensor)
    if kind == gguf.GGMLQuantizationType.Q6_K:
        return quantise_q6_k(values)
    return np.ascontiguousarray(gguf.quantize(values.squeeze(), kind)).view(np.uint8)
