"""The program of a rank's process: its part of the model on Paddle Inference, in a group of ``paddle.distributed``.

Requests are those of ``child.py``, from ``paddle_group.py``. The group is named by the environment, as Paddle does it:
``PADDLE_TRAINER_ID`` and so on.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from ernie_accel.backends.static_graph.child import serve
from ernie_accel.backends.static_graph.executor import Array
from ernie_accel.backends.static_graph.paddle import PaddleExecutor, open_predictor
from ernie_accel.backends.static_graph.paddle_settings import PaddleOptions, Target
from ernie_accel.export.paddle_package import import_paddle
from ernie_accel.export.signature import Signature

__all__ = ["RankServer"]


class RankServer:
    """One rank: memory that all ranks see, and its graph."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._executor: PaddleExecutor | None = None

    def start(self, device: str) -> dict[str, Any]:
        """Join the group, which waits until all have. ``device`` is Paddle's name of it: ``"cpu"``, ``"gpu:1"``."""
        paddle = import_paddle()
        paddle.set_device(device)
        paddle.distributed.init_parallel_env()
        return {"version": paddle.__version__}

    def open(
        self, program: str, signature: dict[str, Any], target: dict[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Load the rank's program; ``target`` are the fields of ``Target``, ``options`` some of ``PaddleOptions``."""
        paddle = import_paddle()
        shape = Signature.from_dict(signature, program)
        where = Target(**target)
        predictor = open_predictor(paddle, Path(program), where, PaddleOptions(**options))
        self._executor = PaddleExecutor(paddle, predictor, shape, where, {})
        return {}

    def run(self, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
        """Compute one step; an entry is name, dtype, shape, offset in the memory."""
        assert self._executor is not None
        found = self._executor.run({entry[0]: self._view(*entry[1:]) for entry in inputs})
        for name, *where in outputs:
            target = self._view(*where)
            if found[name].shape != target.shape:
                raise ValueError(
                    f"output {name!r} has shape {found[name].shape} and should have {target.shape}"
                )
            target[...] = found[name]
        return {}

    def _view(self, dtype: str, shape: list[int], offset: int) -> Array:
        view: Array = np.ndarray(tuple(shape), dtype, self._memory, offset)
        return view


if __name__ == "__main__":
    serve(RankServer)
