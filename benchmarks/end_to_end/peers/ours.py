"""This library through the public API, as a user drives it: our native engine, or another that runs our graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import ernie_accel as ea
from ernie_accel.bench.measure import Decoding, prefill
from ernie_accel.types import Precision

from ..formats.checkpoint import random_checkpoint
from ..formats.our_directory import our_directory
from .base import Ids, Setup


class Ours:
    def __init__(self, model: ea.Model) -> None:
        self._model = model
        self._decoding: Decoding | None = None

    def prefill(self, prompt: Ids) -> int:
        return prefill(self._model, prompt)

    def start(self, prompts: Sequence[Ids], steps: int) -> None:
        if self._decoding is not None:
            self._decoding.close()
        self._decoding = Decoding(self._model, prompts)

    def advance(self, steps: int) -> None:
        assert self._decoding is not None
        self._decoding.advance(steps)

    def step_bytes(self) -> int | None:
        assert self._decoding is not None
        if self._model.info.backend != "native":
            return None
        with self._model.profile() as profile:
            self._decoding.advance(1)
        return profile.result.bytes


def load(setup: Setup) -> Ours:
    if setup.backend != "native":
        return _through(setup)
    quantised = setup.precision in ("int8", "int4")
    return Ours(
        ea.Model.load(
            our_directory(setup.shape, setup.precision) if quantised else random_checkpoint(setup.shape),
            backend="native",
            precision="auto" if quantised else cast(Precision, setup.precision),
            kv_precision=cast(Precision, setup.kv or "auto"),
            threads=setup.threads,
            max_batch=max(setup.batch, 1),
            progress=False,
            backend_options=ea.NativeOptions(resident=setup.resident),
        )
    )


def _through(setup: Setup) -> Ours:
    return Ours(
        ea.Model.load(
            random_checkpoint(setup.shape),
            backend=setup.backend,
            precision=cast(Precision, setup.precision),
            threads=setup.threads,
            max_batch=max(setup.batch, 1),
            progress=False,
        )
    )
