"""Quantised weights of earlier loads: found when everything is equal, never otherwise, and never in the way."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel import env
from ernie_accel.backends.registry import available
from ernie_accel.quant import prepare, sources
from ernie_accel.quant.cache import Cache
from ernie_accel.quant.calculator import Calculator
from ernie_accel.testing import SyntheticCheckpoint, synthetic, tiny_config

if not available()["native"].ok:
    pytest.skip("the native backend is not available", allow_module_level=True)

IDS = list(range(3, 40))


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep even tiny models, in a place of this test's own."""
    monkeypatch.setattr(prepare, "KEPT", 0)
    monkeypatch.setattr(sources, "_SETTLED", -1.0)
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantized"


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each calibration that was made."""
    made: list[str] = []
    original = prepare._Job._ids

    def counted(self: Any) -> Any:
        made.append("")
        return original(self)

    monkeypatch.setattr(prepare._Job, "_ids", counted)
    return made


def directory(path: Path, seed: int = 0) -> Path:
    synthetic(tiny_config(), seed=seed, dtype="float32").write(path)
    return path


def logits(source: Any, precision: Any = "int8") -> Any:
    with ea.Model.load(source, backend="native", precision=precision) as model:
        return model.logits(IDS), model.info


def entries(kept: Path) -> list[Path]:
    return [item for item in kept.iterdir() if item.name != "hashes"]


def test_the_second_load_finds_it(tmp_path: Path, kept: Path, calibrations: list[str]) -> None:
    path = directory(tmp_path / "m")
    first, info = logits(path)
    second, again = logits(path)
    np.testing.assert_array_equal(first, second)
    assert len(calibrations) == 1
    assert len(entries(kept)) == 1
    assert info == again
    assert (info.layout, info.precision) == ("pt", "int8")
    assert "calibrated on" in (info.recipe or "")


def test_an_entry_that_goes_before_it_is_opened(
    tmp_path: Path, kept: Path, calibrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory(tmp_path / "m")
    first, _ = logits(path)
    original = Cache.find

    def removed_at_once(self: Any, key: str, config: Any) -> Any:
        found = original(self, key, config)
        assert found is not None
        shutil.rmtree(found.parent)
        return found

    monkeypatch.setattr(Cache, "find", removed_at_once)
    second, _ = logits(path)
    np.testing.assert_array_equal(first, second)
    assert len(calibrations) == 2


def test_off_gives_the_same_bits(
    tmp_path: Path, kept: Path, calibrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory(tmp_path / "m")
    kept_bits, info = logits(path)
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", "off")
    bits, direct = logits(path)
    np.testing.assert_array_equal(bits, kept_bits)
    assert direct == info
    assert len(calibrations) == 2


def test_what_differs_is_not_found(tmp_path: Path, kept: Path, calibrations: list[str]) -> None:
    logits(directory(tmp_path / "a"))
    logits(tmp_path / "a", "int4")
    logits(directory(tmp_path / "b", seed=1))
    assert len(calibrations) == 3
    weights = tmp_path / "a" / "model.safetensors"
    status = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)  # one bit, and the times as they were
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    logits(tmp_path / "a")
    assert len(calibrations) == 4
    logits(directory(tmp_path / "copy", seed=1))  # equal bytes elsewhere
    assert len(calibrations) == 4


def test_virtual_checkpoints_go_by_what_they_are_made_of(kept: Path, calibrations: list[str]) -> None:
    logits(synthetic(tiny_config()))
    logits(synthetic(tiny_config()))
    assert len(calibrations) == 1
    logits(synthetic(tiny_config(), seed=1))
    logits(synthetic(tiny_config(), dtype="float32"))
    logits(synthetic(tiny_config(vocab_size=144)))
    assert len(calibrations) == 4


def test_a_checkpoint_that_does_not_say_what_it_is(kept: Path, calibrations: list[str]) -> None:
    class Anonymous:
        def __init__(self) -> None:
            self.inner = synthetic(tiny_config())
            self.config, self.info = self.inner.config, self.inner.info
            self.directory, self.generation_config = None, self.inner.generation_config
            self.tensor, self.close = self.inner.tensor, self.inner.close

    logits(Anonymous())
    logits(Anonymous())
    assert len(calibrations) == 2
    assert not kept.exists()


def test_equal_words_of_another_class_mean_something_else(kept: Path, calibrations: list[str]) -> None:
    class Other(SyntheticCheckpoint):
        def tensor(self, name: str) -> Any:
            tensor = super().tensor(name)
            return tensor._replace(data=tensor.data[::-1])

    plain = synthetic(tiny_config())
    other = Other(plain.config, "other", 0, "bfloat16")
    assert other.identity == synthetic(tiny_config(torch_dtype="bfloat16")).identity
    logits(synthetic(tiny_config(torch_dtype="bfloat16")))
    logits(other)
    assert len(calibrations) == 2


def test_an_identity_that_is_no_plain_value_is_none(kept: Path, calibrations: list[str]) -> None:
    class Arrays:
        def __init__(self, seed: int) -> None:
            self.inner = synthetic(tiny_config(), seed=seed)
            self.config, self.info = self.inner.config, self.inner.info
            self.directory, self.generation_config = None, self.inner.generation_config
            self.tensor, self.close = self.inner.tensor, self.inner.close
            self.identity = {"weights": np.arange(2000) + (seed if seed else 0) * (np.arange(2000) == 1000)}

    assert str(Arrays(0).identity) == str(Arrays(1).identity)  # NumPy leaves the middle out
    logits(Arrays(0))
    logits(Arrays(1))
    assert len(calibrations) == 2
    assert not kept.exists()


def test_a_damaged_entry_is_made_again(tmp_path: Path, kept: Path, calibrations: list[str]) -> None:
    path = directory(tmp_path / "m")
    expected, _ = logits(path)
    (entry,) = entries(kept)
    weights = entry / "weights.eapack"
    for damage in (b"", weights.read_bytes()[:-1]):
        weights.write_bytes(damage)
        found, _ = logits(path)
        np.testing.assert_array_equal(found, expected)
    assert len(calibrations) == 3


def test_the_oldest_make_room(kept: Path, calibrations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (synthetic(tiny_config(), seed=seed) for seed in (1, 2, 3))
    logits(one)
    (first,) = entries(kept)
    size = sum(item.stat().st_size for item in first.iterdir())
    monkeypatch.setenv("ERNIE_ACCEL_CACHE_LIMIT", str(2 * size + 2 * one.info.total_parameters))
    logits(two)
    os.utime(first, (1, 1))
    logits(one)  # used again, so the other is older now
    (second,) = set(entries(kept)) - {first}
    os.utime(second, (2, 2))
    monkeypatch.setenv("ERNIE_ACCEL_CACHE_LIMIT", str(size + 2 * one.info.total_parameters))
    logits(three)
    assert first in entries(kept)
    assert second not in entries(kept)
    assert len(entries(kept)) == 2


def test_a_cache_too_small_is_not_used(
    kept: Path, calibrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_CACHE_LIMIT", "1000")
    logits(synthetic(tiny_config()))
    assert not kept.exists() or not entries(kept)
    monkeypatch.setenv("ERNIE_ACCEL_CACHE_LIMIT", "much")
    with pytest.raises(ea.ArgumentError, match="ERNIE_ACCEL_CACHE_LIMIT='much'"):
        logits(synthetic(tiny_config()))


def test_a_cache_that_cannot_be_written_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrations: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, _ = logits(synthetic(tiny_config()))
    assert len(caught) == 1
    assert "could not be kept" in str(caught[0].message)
    assert "ERNIE_ACCEL_CACHE" in str(caught[0].message)
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", "off")
    np.testing.assert_array_equal(found, logits(synthetic(tiny_config()))[0])


def test_a_damaged_source_is_an_error_at_once(tmp_path: Path, kept: Path, calibrations: list[str]) -> None:
    path = directory(tmp_path / "m")
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    first = 8 + int.from_bytes(data[:8], "little")
    data[first : first + 4] = np.float32("nan").tobytes()
    weights.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ea.CheckpointError, match="no finite numbers"):
            logits(path)
    assert len(calibrations) == 1
    assert entries(kept) == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_an_entry_that_cannot_be_read_now_stays(
    code: int, tmp_path: Path, kept: Path, calibrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory(tmp_path / "m")
    expected, _ = logits(path)
    (entry,) = entries(kept)
    original = Path.open

    def refused(self: Path, *args: Any, **options: Any) -> Any:
        if self.parent == entry:
            raise OSError(code, os.strerror(code), str(self))
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.warns(RuntimeWarning, match="could not be read from"):
            found, _ = logits(path)
    np.testing.assert_array_equal(found, expected)
    assert len(calibrations) == 2
    logits(path)
    assert len(calibrations) == 2


@pytest.mark.parametrize("cache", ["kept", "off"])
def test_memory_that_is_used_up(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrations: list[str]
) -> None:
    def exhausted(self: Any, *args: Any, **options: Any) -> Any:
        raise MemoryError

    if cache == "off":
        monkeypatch.setenv("ERNIE_ACCEL_CACHE", "off")
    monkeypatch.setattr(Calculator, "round", exhausted)
    with pytest.raises(ea.CapacityError, match=r"takes about [\d,]+ bytes .* fewer than 2,048 tokens"):
        logits(directory(tmp_path / "m"))
    assert len(calibrations) == 1


def test_interrupted_loads_leave_nothing(kept: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ea.Model.load(synthetic(tiny_config()), backend="native", progress=interrupt)
    assert [item.name for item in kept.iterdir()] == []


def test_small_and_plain_loads_leave_the_cache_alone(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "KEPT", 1 << 40)
    logits(synthetic(tiny_config()))
    for precision in ("fp32", "bf16"):
        logits(synthetic(tiny_config()), precision)
    assert not kept.exists()


def test_mistakes_show_before_calibration(calibrations: list[str]) -> None:
    with pytest.raises(ea.ArgumentError, match="max_context"):
        ea.Model.load(synthetic(tiny_config()), backend="native", max_context=100000)
    assert calibrations == []


def test_large_models_are_not_calibrated(calibrations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CALIBRATED", 1000)
    _, info = logits(synthetic(tiny_config()), "int4")
    assert "without calibration" in (info.recipe or "")
    assert calibrations == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ERNIE_ACCEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert env.cache() == tmp_path / "ernie_accel"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert env.cache() == tmp_path / "home" / ".cache" / "ernie_accel"
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", "Off")
    assert env.cache() is None
    monkeypatch.setenv("ERNIE_ACCEL_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(ea.ArgumentError, match="ERNIE_ACCEL_CACHE='~nobody-of-that-name/cache'"):
        env.cache()
    monkeypatch.delenv("ERNIE_ACCEL_CACHE_LIMIT", raising=False)
    assert env.cache_limit() == 4 << 30
