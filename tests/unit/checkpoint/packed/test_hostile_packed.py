"""Files of packed weights that are damaged or lie end in one error that names file and entry."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.registry import available
from ernie_accel.checkpoint import inspect, open_checkpoint
from ernie_accel.errors import CheckpointError, UnsupportedCheckpointError
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.checkpoint.packed.stand_in import StandIn, write

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

Values = dict[str, Any]
PREAMBLE = struct.Struct("<8sIIQQ32s")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a sound directory, mixture of experts."""
    path = tmp_path_factory.mktemp("clean") / "packed"
    write(StandIn(synthetic(tiny_config(moe=True)), "int4"), path, "int4")
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def packed(clean: dict[str, bytes], tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    (tmp_path / "m").mkdir()
    for name, data in clean.items():
        (tmp_path / "m" / name).write_bytes(data)
    return tmp_path / "m"


def weights(packed: Path) -> Path:
    return packed / "weights.eapack"


def refused(packed: Path, words: str, kind: type[CheckpointError] = CheckpointError) -> None:
    with pytest.raises(kind, match=words):
        open_checkpoint(packed)
    with pytest.raises(kind, match=words):
        inspect(packed)


def split(data: bytes) -> tuple[bytes, Values]:
    """Preamble and data, and the header."""
    _, _, _, offset, _, _ = PREAMBLE.unpack(data[: PREAMBLE.size])
    return data[:offset], json.loads(data[offset:])


def join(body: bytes, text: bytes, **fields: int) -> bytes:
    """A file whose preamble and hash fit the header."""
    version, offset, length = fields.get("version", 1), len(body), len(text)
    preamble = PREAMBLE.pack(b"ERNIEPAK", version, 0, offset, length, hashlib.sha256(text).digest())
    return preamble + body[PREAMBLE.size :] + text


def lie(packed: Path, change: Callable[[Values], object]) -> None:
    """Change the header and record the right hash of it."""
    body, values = split(weights(packed).read_bytes())
    change(values)
    weights(packed).write_bytes(join(body, json.dumps(values).encode()))


def matrix(values: Values, name: str = "layers.0.qkv") -> Values:
    return next(entry for entry in values["matrices"] if entry["name"] == name)


def tensor(values: Values, name: str = "model.norm.weight") -> Values:
    return next(entry for entry in values["tensors"] if entry["name"] == name)


@pytest.mark.parametrize("size", [0, 10, 63, 4095, 4096, 5000, -1])
def test_truncated(packed: Path, size: int) -> None:
    data = weights(packed).read_bytes()
    weights(packed).write_bytes(data[:size])
    refused(packed, r"weights\.eapack: is truncated")


def test_what_was_never_finished(packed: Path) -> None:
    data = weights(packed).read_bytes()
    weights(packed).write_bytes(bytes(4096) + data[4096:])
    refused(packed, r"weights\.eapack: does not begin as a file of packed weights")


def test_bytes_after_the_header(packed: Path) -> None:
    with weights(packed).open("ab") as file:
        file.write(b" ")
    refused(packed, "truncated or damaged")


def test_another_version(packed: Path) -> None:
    body, values = split(weights(packed).read_bytes())
    weights(packed).write_bytes(join(body, json.dumps(values).encode(), version=2))
    refused(packed, "version 2 of the format.*again", UnsupportedCheckpointError)


def test_a_header_that_is_no_longer_what_was_written(packed: Path) -> None:
    data = bytearray(weights(packed).read_bytes())
    data[-5] ^= 1
    weights(packed).write_bytes(data)
    refused(packed, "header is damaged: its SHA-256")


def test_a_header_that_is_no_json(packed: Path) -> None:
    body, _ = split(weights(packed).read_bytes())
    for text in (b"", b"[]", b"{", b'{"precision": 1, "precision": 2}'):
        weights(packed).write_bytes(join(body, text))
        refused(packed, r"weights\.eapack: header")


def shift(name: str, by: int) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        matrix(values, name)["offset"] += by

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(precision="int3"), "precision='int3'"),
        (lambda v: v.update(activations={"body": 64}), "activations"),
        (lambda v: v["activations"].update(down=24), "down=24"),
        (lambda v: v["activations"].update(down=True), "down=True"),
        (lambda v: v["activations"].update(body=0), "body=0"),
        (lambda v: v.update(recipe=3), "recipe must be a string"),
        (lambda v: v.update(files={"../config.json": "0" * 64}), "plain file name"),
        (lambda v: v.update(files={"..": "0" * 64}), "plain file name"),
        (lambda v: v.update(files={"a\0b": "0" * 64}), "plain file name"),
        (lambda v: v.update(files={"\ud800": "0" * 64}), "plain file name"),
        (lambda v: v.update(files={"c:\\x": "0" * 64}), "plain file name"),
        (lambda v: v.update(files={"x" * 256: "0" * 64}), "plain file name"),
        (lambda v: v.update(recipe="half \udc00"), "recipe must be a string"),
        (lambda v: v.update(files={"config.json": "x"}), "files must map"),
        (lambda v: v.update(matrices=3), "matrix entries is missing"),
        (lambda v: v["matrices"].pop(), "'head' is missing"),
        (lambda v: v["tensors"].pop(), "'model.norm.weight' is missing"),
        (lambda v: v["matrices"].append(v["matrices"][0]), "appears twice"),
        (lambda v: v["matrices"].append({**v["matrices"][0], "name": "x"}), "'x' does not belong"),
        (lambda v: v["matrices"].append(7), "must have name"),
        (lambda v: matrix(v).pop("group"), "must have name"),
        (lambda v: matrix(v).update(more=1), "must have name"),
        (lambda v: matrix(v).update(precision="bf16"), "'layers.0.qkv': precision='bf16'"),
        (lambda v: matrix(v).update(precision=["int8"]), r"precision=\['int8'\]"),
        (lambda v: matrix(v, "embedding").update(precision="int8"), "'embedding': precision='int8'"),
        (lambda v: matrix(v, "embedding").update(group=64), "'embedding': is not quantised"),
        (lambda v: matrix(v, "embedding").update(exact=[0, 1]), "'embedding': is not quantised"),
        (lambda v: matrix(v).update(precision="int8"), r"'layers.0.qkv': \d+ bytes: 256 x 64 in int8 take"),
        (lambda v: matrix(v).update(group=48), "group=48"),
        (lambda v: matrix(v).update(group="32"), "group='32'"),
        (lambda v: matrix(v).update(exact=[1]), "exact columns"),
        (lambda v: matrix(v).update(exact=[5, 5]), "exact columns"),
        (lambda v: matrix(v).update(exact=[1, 64]), "exact columns"),
        (lambda v: matrix(v).update(exact=[-1, 5]), "exact must be"),
        (lambda v: matrix(v).update(exact=[1.0, 5]), "exact must be"),
        (lambda v: matrix(v).update(exact=list(range(66))), "exact columns"),
        (lambda v: matrix(v).update(exact=[1, 2, 3, 4]), "bytes: 256 x 64 in int4 take"),
        (lambda v: matrix(v).update(bytes=64), "64 bytes: 256 x 64"),
        (lambda v: matrix(v).update(bytes=-64), "offset and bytes"),
        (lambda v: matrix(v).update(offset=True), "offset and bytes"),
        (lambda v: matrix(v).update(offset=1 << 63), "offset and bytes"),
        (lambda v: matrix(v).update(offset=1 << 50), "leaves a gap|data ends"),
        (lambda v: matrix(v).update(offset=0), "overlaps the preamble"),
        (lambda v: matrix(v).update(sha256="0"), "sha256"),
        (shift("layers.0.qkv", 1), "'layers.0.qkv': offset"),
        (shift("layers.0.qkv", 64), "'layers.0.qkv': leaves a gap"),
        (shift("layers.0.qkv", -64), "'layers.0.qkv': overlaps 'embedding'"),
        (shift("head", 64), "leaves a gap"),
        (lambda v: tensor(v).update(shape=[32]), r"'model.norm.weight': shape \[32\]: must be \[64\]"),
        (lambda v: tensor(v).update(bytes=128), "'model.norm.weight': 128 bytes"),
        (lambda v: tensor(v).update(offset=1 << 40), "leaves a gap"),
        (
            lambda v: matrix(v, "layers.1.experts.3.gate_up").update(exact=[2, 61]),
            "'layers.1.experts.3.gate_up': must have the precision and exact columns",
        ),
    ],
)
def test_a_header_that_lies(packed: Path, change: Callable[[Values], object], words: str) -> None:
    lie(packed, change)
    refused(packed, rf"weights\.eapack.*({words})")


def test_sizes_must_fit_config_json(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "intermediate_size": 112}))
    refused(packed, r"'layers\.0\.gate_up': \d+ bytes: 224 x 64")
    (packed / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 2, "moe_layer_end_index": 1})
    )
    refused(packed, "do not fit config.json")


def test_two_sets_of_weights_contradict_each_other(packed: Path) -> None:
    (packed / "model.safetensors").write_bytes(b"")
    refused(packed, r"holds weights\.eapack and model\.safetensors")


def test_no_regular_file(packed: Path) -> None:
    weights(packed).unlink()
    weights(packed).mkdir()
    refused(packed, "is not a regular file")


def test_random_damage_is_an_error_or_loads(packed: Path, clean: dict[str, bytes]) -> None:
    """Whatever the header says, reading it ends in our error; a header that passes gives a model that computes."""
    chance = random.Random(1)
    body, values = split(clean["weights.eapack"])
    messages = []
    for _ in range(300):
        changed = json.loads(json.dumps(values))
        for _ in range(chance.choice((1, 1, 2))):
            spoil(changed, chance)
        weights(packed).write_bytes(join(body, json.dumps(changed).encode()))
        try:
            with ea.Model.load(packed, threads=1, max_context=64) as model:
                model.logits([1, 2, 3])
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all("weights.eapack" in message for message in messages)


def spoil(values: Values, chance: random.Random) -> None:
    entry = chance.choice([*values["matrices"], *values["tensors"], values, values["activations"]])
    key = chance.choice(list(entry))
    others: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        64,
        1 << 31,
        1 << 61,
        1.5,
        "",
        "int8",
        "int4",
        [],
        [0, 1],
        {},
        "a" * 64,
    ]
    entry[key] = chance.choice(others)
