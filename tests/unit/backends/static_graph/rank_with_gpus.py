"""A rank of a Paddle that says it has GPUs: notes what is asked of them, and computes on the CPU.

Stands for paddlepaddle-gpu as its documentation and Python sources describe it: ``init_parallel_env`` wants
``FLAGS_selected_gpus`` and takes NCCL where ``PADDLE_DISTRI_BACKEND`` says so; ``Config.enable_use_gpu`` takes
megabytes, a device and a precision. Everything else, the sums within the predictor too, is Paddle's own, over gloo.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ernie_accel.backends.static_graph.child import serve
from ernie_accel.backends.static_graph.paddle_rank import RankServer
from ernie_accel.export.paddle_package import import_paddle

KEPT = ("PADDLE_TRAINER_ID", "PADDLE_DISTRI_BACKEND", "FLAGS_selected_gpus", "CUDA_VISIBLE_DEVICES")


def note(what: str, *values: Any) -> None:
    """Write a line to this rank's file."""
    path = Path(os.environ["NOTES_OF_GPUS"]) / f"rank-{os.environ['PADDLE_TRAINER_ID']}"
    with path.open("a") as file:
        print(json.dumps([what, *values]), file=file)


def pretend() -> None:
    """Put the notes where CUDA would be."""
    paddle = import_paddle()
    set_device, init, config = (
        paddle.set_device,
        paddle.distributed.init_parallel_env,
        paddle.inference.Config,
    )

    def set_gpu(device: str) -> None:
        note("set_device", device)
        set_device("cpu")

    def init_with_nccl() -> Any:
        note("init_parallel_env", {name: os.environ.get(name) for name in KEPT})
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        return init()

    def enable_use_gpu(self: Any, megabytes: int, device: int, precision: Any) -> None:
        note("enable_use_gpu", megabytes, device, precision.name)
        self.disable_gpu()
        self.disable_mkldnn()  # its operations are not those of a GPU

    paddle.set_device, paddle.distributed.init_parallel_env = set_gpu, init_with_nccl
    config.enable_use_gpu = enable_use_gpu


if __name__ == "__main__":
    pretend()
    serve(RankServer)
