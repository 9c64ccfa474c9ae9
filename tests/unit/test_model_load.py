from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.testing import synthetic, tiny_config


@pytest.fixture(scope="module")
def model(checkpoint_directory: Path) -> ea.Model:
    return ea.Model.load(checkpoint_directory, backend="reference")


def test_a_virtual_checkpoint_loads_and_has_no_text() -> None:
    with ea.Model.load(synthetic(tiny_config()), backend="reference") as model:
        assert model.tokenizer is None
        done = model.generate([1, 2], max_tokens=3, ignore_eos=True)
        assert (done.text, len(done.token_ids)) == ("", 3)
        for call in (
            lambda: model.generate("x"),
            lambda: model.chat([{"role": "user", "content": "x"}]),
            lambda: model.score("x"),
            lambda: model.generate([1], stop="x"),
        ):
            with pytest.raises(
                ea.TokenizerError, match=r"neither tokenizer\.model nor tokenizer\.json in a checkpoint in"
            ):
                call()


def test_a_directory_without_tokenizer_says_where(tmp_path: Path) -> None:
    synthetic(tiny_config()).write(tmp_path / "bare")
    with (
        ea.Model.load(tmp_path / "bare", backend="mock") as model,
        pytest.raises(ea.TokenizerError, match=r"bare; put one there, or give token ids"),
    ):
        model.generate("x")


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"precision": "int3"}, "precision='int3': must be one of auto, fp32, bf16, fp16, fp8, int8, int4"),
        ({"kv_precision": "fp16"}, "kv_precision='fp16': must be one of auto, fp32, bf16, int8"),
        ({"max_context": 0}, "max_context=0"),
        ({"max_context": 257}, "max_context=257"),
        ({"max_batch": True}, "max_batch=True"),
        ({"threads": -1}, "threads=-1"),
        ({"memory_limit": 0.5}, r"memory_limit=0\.5"),
        ({"backend": "refrence"}, "did you mean 'reference'"),
        ({"backend": None}, "backend=None: must be auto or one of"),
        ({"tensor_parallel": 0}, "tensor_parallel=0: must be a whole number of at least 1 or 'auto'"),
        ({"progress": 3}, "progress=3"),
        ({"revision": "main"}, "revision"),
        ({"revision": 5}, "revision=5: must be None or the name of a branch"),
        ({"cache_dir": 5}, "cache_dir=5: must be None or the path of a directory"),
    ],
)
def test_options_that_can_never_work(checkpoint_directory: Path, option: dict[str, Any], match: str) -> None:
    with pytest.raises(ea.ArgumentError, match=match):
        ea.Model.load(checkpoint_directory, **{"backend": "reference", **option})


def test_what_a_backend_lacks_names_those_that_can(checkpoint_directory: Path) -> None:
    with pytest.raises(ea.UnsupportedError, match=r"precision='int8': backend 'reference' has fp32.*native"):
        ea.Model.load(checkpoint_directory, backend="reference", precision="int8")
    with pytest.raises(ea.UnsupportedError, match="tensor_parallel=2: backend 'reference' splits no model"):
        ea.Model.load(checkpoint_directory, backend="reference", tensor_parallel=2)


def test_sources_that_are_none(checkpoint_directory: Path) -> None:
    with pytest.raises(ea.ArgumentError, match="source=7"):
        ea.Model.load(7, backend="mock")  # type: ignore[arg-type]
    with pytest.raises(ea.ArgumentError, match="belong to hub ids"):
        ea.Model.load(synthetic(tiny_config()), backend="mock", revision="main")
    with pytest.raises(ea.CheckpointError):
        ea.Model.load(checkpoint_directory / "nowhere", backend="mock")


def test_the_callers_own_checkpoint_stays_open(checkpoint_directory: Path) -> None:
    from ernie_accel.checkpoint import open_checkpoint

    with open_checkpoint(checkpoint_directory) as checkpoint:
        ea.Model.load(checkpoint, backend="mock").close()
        assert checkpoint.tensor("model.norm.weight").data.shape == (64,)


def test_files_are_closed_after_loading(checkpoint_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_accel import checkpoint

    opened, open_checkpoint = [], checkpoint.open_checkpoint

    def record(path: Path) -> Any:
        opened.append(open_checkpoint(path))
        return opened[-1]

    monkeypatch.setattr(checkpoint, "open_checkpoint", record)
    with ea.Model.load(checkpoint_directory, backend="mock"), pytest.raises(ea.ClosedError):
        opened[0].tensor("model.norm.weight")


def test_info_and_config_say_what_was_loaded(model: ea.Model, checkpoint_directory: Path) -> None:
    assert model.config.vocab_size == 640
    plain = ea.inspect(checkpoint_directory)
    assert (plain.name, plain.backend) == ("tiny-ERNIE", None)
    assert (model.info.name, model.info.parameters) == (plain.name, plain.parameters)
    assert (model.info.backend, model.info.precision, model.info.kv_precision) == (
        "reference",
        "fp32",
        "fp32",
    )


def test_true_is_no_number_of_parts() -> None:
    with pytest.raises(ea.ArgumentError, match="tensor_parallel=True"):
        ea.Model.load(synthetic(tiny_config()), backend="reference", tensor_parallel=True)
