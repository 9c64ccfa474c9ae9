from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ernie_accel.checkpoint.exported import EXPORT_NAME
from ernie_accel.errors import ArgumentError, ErnieAccelError, UnsupportedCheckpointError
from ernie_accel.original import new_directory, open_original

POET = Path(__file__).parents[2] / "examples/poet/model"


@pytest.mark.parametrize("source", [5, None, object()])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with (
        ExitStack() as stack,
        pytest.raises(ArgumentError, match="must be a path, a hub id, or a checkpoint"),
    ):
        open_original(source, "quantize", None, stack)


def test_what_was_opened_is_closed() -> None:
    with ExitStack() as stack:
        checkpoint = open_original(POET, "quantize", None, stack)
        assert checkpoint.config.num_hidden_layers > 0
    with pytest.raises(ErnieAccelError):
        checkpoint.tensor("model.norm.weight")


@pytest.mark.parametrize("target", [5, None])
def test_a_target_is_a_path(target: Any) -> None:
    with pytest.raises(ArgumentError, match="target"):
        new_directory(target)


@pytest.mark.parametrize("verb", ["quantize", "export"])
def test_what_was_made_of_another_checkpoint_is_refused(tmp_path: Path, verb: str) -> None:
    shutil.copy(POET / "config.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"graph")
    described = {
        "format": "onnx",
        "precision": "fp32",
        "main": "model.onnx",
        "producer": "x",
        "signature": {},
    }
    (tmp_path / EXPORT_NAME).write_text(json.dumps({**described, "files": {"model.onnx": 5}}))
    with (
        ExitStack() as stack,
        pytest.raises(UnsupportedCheckpointError, match=rf"is a graph already; {verb} the checkpoint"),
    ):
        open_original(tmp_path, verb, None, stack)
