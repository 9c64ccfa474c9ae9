"""A directory for onnxruntime-genai: our checkpoint as a Llama, exported by that package's own builder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ernie_accel.architecture import tensor_specs
from ernie_accel.testing import synthetic

from .cache import cached, remove
from .llama_weights import llama_config, llama_tensor


def llama_directory(shape: str) -> Path:
    """Return a directory as transformers saves a Llama, in bfloat16."""

    def make(path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        path.mkdir()
        with synthetic(shape) as checkpoint:
            config = {**llama_config(checkpoint.config), "torch_dtype": "bfloat16"}
            names = tensor_specs(checkpoint.config)
            tensors = {name: torch.from_numpy(llama_tensor(checkpoint, name)).bfloat16() for name in names}
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(path)

    return cached(f"{shape}-llama", make)


def write_tokenizer(path: Path) -> None:
    """A vocabulary of one word: the builder insists on a tokenizer, and nothing here uses it."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def onnx_directory(shape: str, precision: str) -> Path:
    """Return the directory of a shape in ``int4`` or ``int8``: blocks of 32, embedding and head alike."""

    def make(path: Path) -> None:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        source = llama_directory(shape)
        files = ["-i", str(source), "-o", str(path), "-p", precision, "-e", "cpu", "-c", str(path / "cache")]
        # Level 4 is int8 arithmetic.
        options = ["accuracy_level=4", "block_size=32", "prune_lm_head=true", "hf_token=false"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(
            [*builder, *files, "--extra_options", *options], check=True, env=environment, stdout=sys.stderr
        )
        remove(path / "cache")

    return cached(f"{shape}-onnx-{precision}", make)
