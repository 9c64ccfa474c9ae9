"""What was packed into a directory computes the same bits as what was packed into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.backends.registry import available
from ernie_accel.checkpoint import inspect, open_checkpoint
from ernie_accel.checkpoint.packed import PackedCheckpoint, units
from ernie_accel.checkpoint.packed.layout import matrix_bytes
from ernie_accel.checkpoint.packed.unpack import unpack
from ernie_accel.checkpoint.packed.verify import verify
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.checkpoint.packed.stand_in import StandIn, write

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

IDS = list(range(3, 40))
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense untied": {"tie_word_embeddings": False},
    "dense odd": {"hidden_size": 72, "intermediate_size": 100, "vocab_size": 131, "head_dim": 16},
    "moe": {"moe": True},
    "moe without shared": {"moe": True, "moe_num_shared_experts": 0},
    "moe tied": {"moe": True, "tie_word_embeddings": True},
}


def logits(source: Any, **options: Any) -> Any:
    with ea.Model.load(source, backend="native", threads=2, **options) as model:
        return model.logits(IDS), model.info


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_as_without_a_file(
    shape: str, precision: Literal["int8", "int4"], tmp_path: Path
) -> None:
    source = StandIn(synthetic(tiny_config(**SHAPES[shape])), precision)
    expected, direct = logits(source)
    write(source, tmp_path / "packed", precision)
    found, info = logits(tmp_path / "packed")
    np.testing.assert_array_equal(found, expected)
    assert (info.precision, info.layout, info.recipe) == (precision, "packed", source.recipe)
    assert direct.recipe == source.recipe
    assert info.total_parameters == direct.total_parameters


@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_sizes_are_those_of_the_native_core(shape: str) -> None:
    from ernie_accel import _native
    from ernie_accel.backends.base import LoadOptions
    from ernie_accel.backends.native.backend import NativeOptions, _sizes

    config = tiny_config(**SHAPES[shape])
    sizes = _sizes(config, LoadOptions(precision="int4"), NativeOptions())
    sizes.max_pages = 1
    names = set(_native.Model(sizes, "portable", 1).matrix_names())
    slots = [slot for unit in units(config) for slot in unit.slots]
    assert {slot.name for slot in slots} == {name for name in names if not name.endswith("router")}
    assert len(slots) == len({slot.name for slot in slots})
    for precision in ("int8", "int4"):
        source = StandIn(synthetic(config), precision)
        packer = ea.backends.registry.get("native").packer(source, LoadOptions())
        for unit in units(config):
            for slot, packed in zip(unit.slots, packer.pack(unit), strict=True):
                expected = matrix_bytes(slot, packed.precision, packed.group, len(packed.exact))
                assert (packed.name, packed.panels.nbytes) == (slot.name, expected)


def test_a_directory_says_what_it_holds(tmp_path: Path) -> None:
    source = StandIn(synthetic(tiny_config()), "int8")
    write(source, tmp_path / "packed")
    info = inspect(tmp_path / "packed")
    assert (info.name, info.layout, info.precision, info.recipe) == (
        "packed",
        "packed",
        "int8",
        source.recipe,
    )
    assert info.total_parameters == synthetic(tiny_config()).info.total_parameters
    assert "bits_per_weight" in repr(info)


def test_another_precision_is_refused(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int4"), tmp_path / "packed", "int4")
    for precision in ("int8", "bf16"):
        with pytest.raises(ea.UnsupportedError, match="is quantized to int4 and holds nothing else"):
            ea.Model.load(tmp_path / "packed", precision=precision)
    ea.Model.load(tmp_path / "packed", precision="int4").close()


def test_backends_that_cannot_take_it_name_the_one_that_can(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    with pytest.raises(
        ea.UnsupportedError, match=r"'reference' takes no quantized directory .* use 'native'"
    ):
        ea.Model.load(tmp_path / "packed", backend="reference")
    with pytest.raises(ea.UnsupportedError, match="backend 'mock' takes no quantized directory"):
        ea.Model.load(tmp_path / "packed", backend="mock")


def test_reference_judges_what_codes_stand_for() -> None:
    source = StandIn(synthetic(tiny_config(moe=True, tie_word_embeddings=True)), "int8")
    with ea.Model.load(source, backend="reference") as judge:
        expected = judge.logits(IDS)
    found, _ = logits(source, kv_precision="bf16")  # the codes are judged, not the cache
    with ea.Model.load(source.source, backend="reference") as plain:
        unquantised = plain.logits(IDS)
    assert np.abs(found - expected).mean() < 0.5 * np.abs(found - unquantised).mean() + 1e-3


def test_tensors_that_are_packed_are_refused_by_name(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        assert checkpoint.tensor("model.norm.weight").data.shape == (64,)
        with pytest.raises(ea.CheckpointError, match="q_proj"):
            checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
        with pytest.raises(ea.CheckpointError, match="no packed matrix 'x'"):
            checkpoint.packed("x")
    with pytest.raises(ea.ClosedError):
        checkpoint.packed("head")


def test_views_outlive_the_checkpoint(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        panels = checkpoint.packed("head").panels
    assert not panels.flags.writeable
    assert panels.sum() > 0


def test_verify_finds_every_flipped_bit(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    path = tmp_path / "packed" / "weights.eapack"
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        header = checkpoint.header
    assert verify(path, header) > path.stat().st_size // 2
    clean = path.read_bytes()
    entries = header.entries
    for entry in (entries[0], entries[len(entries) // 2], entries[-1]):
        data = bytearray(clean)
        data[entry.offset + entry.bytes - 1] ^= 4
        path.write_bytes(data)
        with pytest.raises(ea.CheckpointError, match=rf"weights.eapack: '{entry.name}' is damaged"):
            verify(path, header)
    path.write_bytes(clean)
    (tmp_path / "packed" / "config.json").write_text("{}")
    with pytest.raises(ea.CheckpointError, match=r"config.json: differs"):
        verify(path, header)


def test_verify_looks_at_what_lies_between(tmp_path: Path) -> None:
    made = StandIn(synthetic(tiny_config(hidden_size=72, vocab_size=131, head_dim=16)), "int8")
    write(made, tmp_path / "packed")
    path = tmp_path / "packed" / "weights.eapack"
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        header = checkpoint.header
    assert verify(path, header) == path.stat().st_size + (tmp_path / "packed" / "config.json").stat().st_size
    clean = path.read_bytes()
    ends = {entry.offset + entry.bytes for entry in header.entries} - {
        entry.offset for entry in header.entries
    }
    gap = next(end for end in sorted(ends) if end < header.entries[-1].offset)
    for place in (12, 64, 4095, gap):
        data = bytearray(clean)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(ea.CheckpointError, match="are not zero as they were written"):
            verify(path, header)


def test_verify_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        header = checkpoint.header
    (tmp_path / "packed" / "config.json").unlink()
    with pytest.raises(ea.CheckpointError, match=r"config\.json: cannot be read"):
        verify(checkpoint.path, header)
    os.mkfifo(tmp_path / "packed" / "config.json")
    with pytest.raises(ea.CheckpointError, match=r"config\.json: is not a regular file"):
        verify(checkpoint.path, header)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_panels_unpack_to_the_codes_they_were_made_of(
    shape: str, precision: Literal["int8", "int4"], tmp_path: Path
) -> None:
    source = StandIn(synthetic(tiny_config(**SHAPES[shape])), precision)
    write(source, tmp_path / "packed", precision)
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        for unit in units(source.config):
            for slot in unit.slots:
                if slot.kind == "embedding":
                    continue
                found = unpack(source.config, slot, checkpoint.packed(slot.name))
                assert tuple(found) == slot.tensors
                for name, matrix in found.items():
                    wanted = source.matrix(name)
                    assert (matrix.bits, matrix.group) == (wanted.bits, wanted.group)
                    for part in ("codes", "scales", "subs", "exact", "exact_weights"):
                        np.testing.assert_array_equal(getattr(matrix, part), getattr(wanted, part), part)


def test_read_instead_of_mapped(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    expected, _ = logits(tmp_path / "packed")
    found, _ = logits(tmp_path / "packed", backend_options=ea.NativeOptions(resident=True))
    np.testing.assert_array_equal(found, expected)
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        mapped = checkpoint.packed("head").panels.copy()
        checkpoint.make_resident()
        panels = checkpoint.packed("head").panels
        (tmp_path / "packed" / "weights.eapack").write_bytes(b"")  # nobody reads the file any more
    np.testing.assert_array_equal(panels, mapped)
    assert not panels.flags.writeable


def test_a_file_that_went_before_it_was_read(tmp_path: Path) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        checkpoint.path.unlink()
        with pytest.raises(ea.CheckpointError, match=r"weights\.eapack: cannot be read"):
            checkpoint.make_resident()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("change", ["shorter", "longer", "another"])
def test_a_file_that_changed_before_it_was_read(tmp_path: Path, resident: bool, change: str) -> None:
    write(StandIn(synthetic(tiny_config()), "int8"), tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        path, data = checkpoint.path, checkpoint.path.read_bytes()
        if change == "another":  # of the same size, as another quantization would be
            (tmp_path / "new").write_bytes(data)
            os.replace(tmp_path / "new", path)
        else:
            path.write_bytes(data[:-100] if change == "shorter" else data + b"\0")
        with pytest.raises(ea.CheckpointError, match=r"weights\.eapack: changed since it was opened"):
            checkpoint.make_resident() if resident else checkpoint.packed("head")
