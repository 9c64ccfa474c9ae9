from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.base import Step, StepResult
from ernie_accel.backends.mock import MockOptions, MockRunner
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.testing.tokenizer import SAMPLE_TEXT, train_tokenizer

ROWS = 640
"""More rows than the tokenizer has ids: the rest is padding."""


@pytest.fixture(scope="session")
def checkpoint_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer, as it lies on disk."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny-ERNIE"
    config = tiny_config(vocab_size=ROWS)
    synthetic(config, dtype="float32").write(directory)
    train_tokenizer(SAMPLE_TEXT, directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.8, "top_p": 0.8})
    )
    return directory


@pytest.fixture
def load_mock(checkpoint_directory: Path) -> Callable[..., ea.Model]:
    """Load the tiny checkpoint on ``mock``; ``reply`` is text or ids, further arguments are those of load."""

    def load(reply: str | list[int] = "", replies: dict[str, str] | None = None, **options: Any) -> ea.Model:
        certainty, seconds = options.pop("certainty", 100.0), options.pop("step_seconds", 0.0)
        with ea.Model.load(checkpoint_directory, backend="mock") as plain:
            assert plain.tokenizer is not None
            encode = plain.tokenizer.encode
        mock = MockOptions(
            reply=encode(reply) if isinstance(reply, str) else reply,
            replies={tuple(encode(key)): encode(value) for key, value in (replies or {}).items()},
            certainty=certainty,
            step_seconds=seconds,
        )
        return ea.Model.load(checkpoint_directory, backend="mock", backend_options=mock, **options)

    return load


@pytest.fixture
def hold_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Have no step of ``mock`` end within a block, so that a test may take its time there."""

    @contextmanager
    def hold() -> Iterator[None]:
        go, forward = threading.Event(), MockRunner.forward

        def held(runner: MockRunner, batch: Sequence[Step]) -> list[StepResult]:
            assert go.wait(60)
            return forward(runner, batch)

        with monkeypatch.context() as patch:
            patch.setattr(MockRunner, "forward", held)
            try:
                yield
            finally:
                go.set()

    return hold
