"""Directories of ranks that are damaged, mixed up, incomplete or made up end in one error that says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_accel.checkpoint.headers import read_header
from ernie_accel.checkpoint.shard import merge, split, verify
from ernie_accel.errors import ArgumentError, CheckpointError, UnsupportedCheckpointError
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.checkpoint.shard.common import write

KEY = "model.layers.0.self_attn.k_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """Four ranks, of which two hold each key head."""
    write(tmp_path / "m", tiny_config(True, vocab_size=131))
    split(tmp_path / "m", tmp_path / "r", ranks=4)
    return tmp_path / "r"


def refused(ranks: Path, words: str, kind: type[CheckpointError] = CheckpointError) -> None:
    """Neither verified nor merged, and nothing is left of the attempt."""
    with pytest.raises(kind, match=words):
        verify(ranks)
    with pytest.raises(kind, match=words):
        merge(ranks, ranks.parent / "back")
    assert not list(ranks.parent.glob("back*"))


def flip(path: Path, name: str, place: int = 0) -> None:
    """Change one byte of a tensor."""
    position = read_header(path).tensors[name].start + place
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def rank(ranks: Path, number: int) -> Path:
    return ranks / f"rank-{number:02d}-of-04"


def test_an_altered_byte_is_found_and_the_rank_named(ranks: Path) -> None:
    flip(rank(ranks, 2) / "model.safetensors", "model.embed_tokens.weight", 77)
    refused(ranks, r"rank-02-of-04/model.safetensors: tensor 'model.embed_tokens.weight' is damaged")


def test_an_altered_copy_is_found_and_the_rank_named(ranks: Path) -> None:
    flip(rank(ranks, 1) / "model.safetensors", KEY)
    refused(
        ranks, r"rank-01-of-04/model.safetensors: tensor 'model.layers.0.self_attn.k_proj.weight' is damaged"
    )
    flip(rank(ranks, 1) / "model.safetensors", KEY)
    flip(rank(ranks, 3) / "model.safetensors", NORM)
    refused(ranks, r"rank-03-of-04/model.safetensors: tensor 'model.norm.weight' is damaged")


def recorded(ranks: Path, number: int, name: str) -> None:
    """Give an altered tensor the hash that it now has."""
    import hashlib

    path = rank(ranks, number) / "model.safetensors"
    entry = read_header(path).tensors[name]
    digest = hashlib.sha256(path.read_bytes()[entry.start : entry.end]).hexdigest()
    rewrite(rank(ranks, number) / "shard.json", lambda m: m["tensors"][name].update(sha256=digest))


def test_copies_that_differ_are_found_though_each_has_its_hash(ranks: Path) -> None:
    flip(rank(ranks, 1) / "model.safetensors", KEY)
    recorded(ranks, 1, KEY)
    with pytest.raises(
        CheckpointError, match=r"k_proj.weight': ranks that hold copies of it hold different ones"
    ):
        merge(ranks, ranks.parent / "back")


def test_parts_that_do_not_make_the_source_are_found_though_each_has_its_hash(ranks: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    flip(rank(ranks, 1) / "model.safetensors", name)
    recorded(ranks, 1, name)
    with pytest.raises(
        CheckpointError, match=r"o_proj.weight': its parts are sound, but together they are not what"
    ):
        merge(ranks, ranks.parent / "back")


def test_padding_holds_nothing(ranks: Path) -> None:
    name = "model.embed_tokens.weight"
    path = rank(ranks, 3) / "model.safetensors"
    flip(path, name, read_header(path).tensors[name].end - read_header(path).tensors[name].start - 1)
    recorded(ranks, 3, name)
    with pytest.raises(
        CheckpointError, match=r"rank-03-of-04/model.safetensors: tensor 'model.embed_tokens.weight'"
    ):
        merge(ranks, ranks.parent / "back")


def test_every_rank_must_be_there(ranks: Path) -> None:
    shutil.rmtree(rank(ranks, 2))
    shutil.rmtree(rank(ranks, 0))
    refused(ranks, r"/r: ranks are missing: rank-00-of-04, rank-02-of-04; put them there")
    assert verify(rank(ranks, 1)) > 0  # what a machine has may be verified there
    refused(ranks.parent / "m", "holds no ranks of a checkpoint that was split")


def test_ranks_must_not_be_mixed_up(ranks: Path, tmp_path: Path) -> None:
    rank(ranks, 2).rename(tmp_path / "x")
    rank(ranks, 1).rename(rank(ranks, 2))
    (tmp_path / "x").rename(rank(ranks, 1))
    refused(ranks, r"rank-01-of-04: says that it is rank-02-of-04: ranks are mixed up")


@pytest.mark.parametrize(
    ("seed", "experts", "file_bytes"), [(9, "cut", 1 << 31), (0, "whole", 1 << 31), (0, "cut", 99)]
)
def test_ranks_must_be_of_one_division(
    seed: int, experts: Any, file_bytes: int, ranks: Path, tmp_path: Path
) -> None:
    source = synthetic(tiny_config(True, vocab_size=131), seed=seed)
    source.write(tmp_path / "n")
    if seed == 0:
        shutil.copy(tmp_path / "m" / "tokenizer_config.json", tmp_path / "n")
    split(tmp_path / "n", tmp_path / "other", ranks=4, experts=experts, file_bytes=file_bytes)
    shutil.rmtree(rank(ranks, 3))
    shutil.copytree(rank(tmp_path / "other", 3), rank(ranks, 3))
    refused(
        ranks, r"rank-03-of-04: is a rank of .*rank-00-of-04 one of .*: keep the ranks of one division in a"
    )


def test_small_files_and_headers_are_compared_too(ranks: Path) -> None:
    file = rank(ranks, 1) / "tokenizer_config.json"
    text = file.read_bytes()
    file.write_bytes(text + b" ")
    refused(ranks, r"rank-01-of-04/tokenizer_config.json: differs from what was written")
    file.write_bytes(text)
    (rank(ranks, 1) / "added_tokens.json").write_text("{}")
    refused(ranks, r"rank-01-of-04/added_tokens.json: differs")
    (rank(ranks, 1) / "added_tokens.json").unlink()
    weights = rank(ranks, 1) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content.replace(b"q_proj", b"x_proj", 1))
    refused(ranks, r"rank-01-of-04/model.safetensors: its header is not the one")
    weights.write_bytes(content[:-1])
    refused(ranks, r"rank-01-of-04/model.safetensors: tensor .* is damaged")
    weights.unlink()
    refused(ranks, r"rank-01-of-04/model.safetensors: cannot be read: No such file")
    weights.write_bytes(content + b"x")
    with pytest.raises(CheckpointError, match="is longer than what was written"):
        verify(ranks)


def set_(*keys: str, to: object) -> Callable[[dict[str, Any]], object]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return change


def test_no_manifest_is_trusted(ranks: Path) -> None:
    path = rank(ranks, 0) / "shard.json"
    sound = path.read_text(encoding="utf-8")
    digest = "0" * 64
    manifest = json.loads(sound)
    header = manifest["source"]["files"]["model.safetensors"]
    cases: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (set_("format", to="other"), "format='other'"),
        (set_("rank", to=4), "rank=4, ranks=4"),
        (set_("rank", to=-1), "rank=-1"),
        (set_("rank", to=True), "rank: must be given, as int"),
        (set_("rank", to=1), "says that it is rank-01-of-04"),
        (set_("ranks", to=0), "ranks=0"),
        (set_("ranks", to=3), "must be one of 1, 2, 4|says that it is rank-00-of-03"),
        (set_("ranks", to="4"), "ranks: must be given"),
        (set_("experts", to="none"), "experts='none'"),
        (set_("experts", to=None), "experts: must be given"),
        (set_("file_bytes", to=0), "impossible"),
        (set_("source", to=[]), "source: must be given, as dict"),
        (set_("source", "sha256", to=digest), "does not have the hash"),
        (set_("source", "name", to=3), "name: must be given"),
        (set_("source", "index", to=3), "index: must be given"),
        (set_("source", "files", to={}), "does not have the hash"),
        (set_("source", "files", to={"../x.safetensors": header}), "plain name"),
        (set_("source", "files", to={"model.safetensors": "{"}), "no valid JSON"),
        (set_("source", "files", to={"model.safetensors": header[:-30]}), "no valid JSON"),
        (set_("source", "small_files", "../../etc", to=digest), "none that is copied"),
        (set_("source", "small_files", "LICENSE", to="ff"), "must be a SHA-256"),
        (set_("source", "tensors", NORM, to=digest), "does not have the hash"),
        (set_("tensors", NORM, to=3), "must be given, as dict"),
        (set_("tensors", NORM, to={}), "sha256: must be given"),
        (set_("tensors", NORM, "sha256", to=digest.upper()[:-1] + "G"), "must be a SHA-256"),
        (set_("tensors", NORM, "sha256", to=digest), "norm.weight' is damaged"),
        (set_("tensors", "made.up", to={"sha256": digest}), "'made.up' must have a hash"),
        (lambda values: values["tensors"].pop(NORM), "'model.norm.weight' must have a hash"),
        (lambda values: values.pop("source"), "source: must be given"),
    ]
    for change, words in cases:
        path.write_text(sound, encoding="utf-8")
        rewrite(path, change)
        with pytest.raises((CheckpointError, ArgumentError), match=words):
            verify(ranks)
        with pytest.raises((CheckpointError, ArgumentError), match=words):
            merge(ranks, ranks.parent / "back")
    for text in (b"", b"[]", b"{", b"\xff", b'{"rank": NaN}', b'{"rank": 1, "rank": 1}'):
        path.write_bytes(text)
        refused(ranks, "shard.json: (is no valid|must hold)")
    path.write_text(sound, encoding="utf-8")
    rewrite(path, set_("rules", to=2))
    refused(ranks, "written by rules 2, this version knows 1", UnsupportedCheckpointError)
    assert not list(ranks.parent.glob("back*"))


def test_a_configuration_that_does_not_fit_is_refused(ranks: Path) -> None:
    path = rank(ranks, 0) / "config.json"
    rewrite(path, set_("num_attention_heads", to=8))
    refused(ranks, r"rank-00-of-04/config.json: differs from what was written")
