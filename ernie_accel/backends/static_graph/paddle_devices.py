"""The devices of a model that Paddle divides among processes, looked at before any of them starts.

On GPUs every process has one, and NCCL sums over them: ``init_parallel_env`` makes the process group 0, from which the
executor of a program takes the communicator of every ``all_reduce_`` with that ring id (``ParseDeviceContext`` in
Paddle's ``new_executor/instruction/instruction_util.cc``), as it takes gloo's on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ernie_accel.backends.static_graph.paddle_settings import Target
from ernie_accel.errors import CapacityError, UnsupportedError

__all__ = ["check_device_memory", "group_targets", "rank_variables"]


def group_targets(
    paddle: Any, device: str | None, precision: str, threads: int, ranks: int
) -> tuple[Target, ...]:
    """Return where each rank computes; threads of the CPU are shared out.

    ``"gpu"`` is the first GPUs that Paddle sees, so that ``CUDA_VISIBLE_DEVICES`` counts; ``"gpu:2,3"`` names them
    within those.

    Raises:
        UnsupportedError: They are not there, too few or too many are named, or this Paddle has no NCCL.
    """
    kind, _, numbers = (device or "cpu").partition(":")
    each = max(1, threads // ranks)
    if kind not in ("gpu", "cuda"):
        return (Target.of(paddle, device, precision, each),) * ranks
    Target.of(paddle, kind, precision, each)
    named = numbers.split(",") if numbers else [str(number) for number in range(ranks)]
    if len(named) != ranks or len(set(named)) != ranks:
        raise UnsupportedError(
            f"device={device!r} with tensor_parallel={ranks}: name {ranks} different GPUs, as in "
            f"'gpu:{','.join(map(str, range(ranks)))}', or none for the first {ranks}"
        )
    targets = tuple(Target.of(paddle, f"gpu:{number}", precision, each) for number in named)
    if not paddle.base.core.is_compiled_with_nccl():
        raise UnsupportedError(
            f"tensor_parallel={ranks} on GPUs: this Paddle was built without NCCL, which sums over them; install a "
            "paddlepaddle-gpu for Linux, or use one GPU"
        )
    return targets


def check_device_memory(paddle: Any, targets: Sequence[Target], required: int) -> None:
    """Raise CapacityError unless every GPU has so many bytes."""
    for target in targets:
        if target.device != "gpu":
            continue
        total = int(paddle.device.cuda.get_device_properties(target.number).total_memory)
        if total < required:
            raise CapacityError(
                f"GPU {target.number} has {total:,} bytes and its part of the model takes {required:,} while it is "
                f"loaded (parameters in fp32, and a step); use a greater tensor_parallel than {len(targets)}, or "
                "lower max_step_tokens"
            )


def rank_variables(target: Target) -> Mapping[str, str]:
    """What ``paddle.distributed.launch`` sets beside the ranks: who sums, and the device among the visible ones."""
    if target.device == "cpu":
        return {"PADDLE_DISTRI_BACKEND": "gloo"}
    return {"PADDLE_DISTRI_BACKEND": "nccl", "FLAGS_selected_gpus": str(target.number)}
