"""Small checkpoints to split, with what real ones hold beside the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from ernie_accel.architecture import ModelConfig
from ernie_accel.checkpoint.save import LayoutName
from ernie_accel.testing import synthetic, tiny_config

Arrays = dict[str, npt.NDArray[Any]]


def write(path: Path, config: ModelConfig | None = None, *, layout: LayoutName = "pt", **more: Any) -> Path:
    """Write a checkpoint and small files beside it."""
    synthetic(config or tiny_config(True)).write(path, layout=layout, **more)
    (path / "tokenizer_config.json").write_text('{"an": "odd"   , "spelling": "字"}\n', encoding="utf-8")
    return path


def contents(path: Path) -> Mapping[str, bytes]:
    """Every file of a directory."""
    return {item.name: item.read_bytes() for item in sorted(path.iterdir())}


def add_tensors(path: Path, arrays: Arrays) -> None:
    """Put tensors into the one file of a checkpoint, with the header of another writer."""
    file = path / "model.safetensors"
    save_file({**load_file(file), **arrays}, file, {"format": "pt", "by": "somebody else"})


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    found = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}), encoding="utf-8")


def multi_token(config: ModelConfig, layout: LayoutName, seed: int = 0) -> Arrays:
    """The tensors of multi-token prediction, bfloat16 bits."""
    random = np.random.default_rng(seed)
    hidden, width = config.hidden_size, config.intermediate_size
    query, key = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))

    def bits(*shape: int) -> npt.NDArray[np.uint16]:
        return random.integers(0, 1 << 16, shape, np.uint16)

    norms = {name: bits(hidden) for name in ("mtp_emb_norm.0.weight", "mtp_hidden_norm.0.weight")}
    block = {f"mtp_block.0.{name}_layernorm.weight": bits(hidden) for name in ("input", "post_attention")}
    if layout == "pt":
        matrices = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (width, hidden),
            "mlp.up_proj": (width, hidden),
            "mlp.down_proj": (hidden, width),
        }
    else:
        matrices = {
            "self_attn.qkv_proj": (hidden, query + 2 * key),
            "self_attn.o_proj": (query, hidden),
            "mlp.up_gate_proj": (hidden, 2 * width),
            "mlp.down_proj": (width, hidden),
        }
    block |= {f"mtp_block.0.{name}.weight": bits(*shape) for name, shape in matrices.items()}
    projection = {"mtp_linear_proj.0.weight": bits(*((hidden, 2 * hidden)[:: 1 if layout == "pt" else -1]))}
    prefix = "model." if layout == "pt" else "ernie."
    return {prefix + name: array for name, array in {**norms, **projection, **block}.items()}


def ranks_of(path: Path) -> list[Path]:
    """Directories of the ranks, in order."""
    return sorted(item for item in path.iterdir() if item.is_dir())
