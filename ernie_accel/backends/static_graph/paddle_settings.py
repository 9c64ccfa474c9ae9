"""How Paddle Inference is set up: the options, and the ``paddle.inference.Config`` that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_accel.backends.static_graph.backend import check_seconds, check_step_tokens
from ernie_accel.errors import ArgumentError, BackendError, UnsupportedError
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import Fusions

__all__ = ["PaddleOptions", "Profile", "Target", "check_device_options", "make_config", "to_tensorrt"]

Profile = tuple[int, int, int]
"""Sequences, tokens of each, places of the past."""

PADDLE_STEP_TOKENS = 128
"""Longer steps are slower: Paddle passes over the scores of attention several times, and these still fit the cache."""


@dataclass(frozen=True, kw_only=True)
class PaddleOptions:
    """Settings of the backend ``paddle`` that no other has.

    Attributes:
        max_step_tokens: Largest number of tokens of one step.
        onednn: Products on a CPU by oneDNN. False leaves all to Paddle's own kernels and MKL: half the memory, since no
            matrix is laid out anew, and much slower wherever more than one row is computed. bf16 needs oneDNN.
        gpu_memory: MB that Paddle takes for its pool of GPU memory at the start.
        tensorrt: On a GPU, have TensorRT compute the parts of the program that it knows.
        tensorrt_profile: The least, the usual and the greatest shapes that TensorRT prepares for, each (sequences,
            tokens, places of the past); others are refused. None takes what ``max_batch``, ``max_step_tokens`` and
            ``max_context`` allow.
        tensorrt_workspace: Bytes that TensorRT may use while it chooses kernels.
        fusions: What the graph does at once; see ``ernie_accel.export.step``.
        load_timeout: With ``tensor_parallel``: seconds that the processes may take to load their parts.
        step_timeout: Likewise, that a step may take; after that they are ended and the call raises.
    """

    max_step_tokens: int = PADDLE_STEP_TOKENS
    onednn: bool = True
    gpu_memory: int = 256
    tensorrt: bool = False
    tensorrt_profile: tuple[Profile, Profile, Profile] | None = None
    tensorrt_workspace: int = 1 << 30
    fusions: Fusions = field(default_factory=Fusions)
    load_timeout: float = 600.0
    step_timeout: float = 600.0

    def __post_init__(self) -> None:
        check_step_tokens(self.max_step_tokens)
        for name in ("onednn", "tensorrt"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: must be True or False")
        for name in ("gpu_memory", "tensorrt_workspace"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name}={value!r}: must be a positive whole number")
        for name in ("load_timeout", "step_timeout"):
            check_seconds(name, getattr(self, name))
        if self.tensorrt_profile is not None:
            _check_profile(self.tensorrt_profile)
        if not self.tensorrt and (self.tensorrt_profile, self.tensorrt_workspace) != (None, 1 << 30):
            raise ArgumentError("tensorrt_profile, tensorrt_workspace: belong to tensorrt=True; set that too")


@dataclass(frozen=True)
class Target:
    """Where and in what a program runs.

    Attributes:
        device: ``"cpu"`` or ``"gpu"``.
        number: Of the GPU.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        threads: On a CPU.
    """

    device: str
    number: int
    precision: str
    threads: int

    @property
    def name(self) -> str:
        """What Paddle calls the device."""
        return "cpu" if self.device == "cpu" else f"gpu:{self.number}"

    @classmethod
    def of(cls, paddle: Any, device: str | None, precision: str, threads: int) -> Target:
        """Check what was asked for against what this Paddle and this machine have. Raises UnsupportedError."""
        kind, _, number = (device or "cpu").partition(":")
        kind = "gpu" if kind == "cuda" else kind
        if kind not in ("cpu", "gpu") or (number and (kind == "cpu" or not number.isdigit())):
            raise UnsupportedError(
                f"device={device!r}: backend 'paddle' has cpu and gpu, and gpu:1 for the second of several"
            )
        if kind == "gpu":
            _check_gpu(paddle, device, int(number or 0))
        elif precision == "fp16":
            raise UnsupportedError("precision='fp16': Paddle computes fp16 on a GPU only; use bf16 or fp32")
        elif precision == "bf16" and not paddle.base.core.supports_bfloat16():
            raise UnsupportedError(
                "precision='bf16': oneDNN needs a CPU with AVX-512 for it and this one has none; use precision='fp32'"
            )
        return cls(kind, int(number or 0), precision, threads)


def make_config(paddle: Any, program: Path, target: Target, options: PaddleOptions) -> Any:
    """The configuration of a predictor.

    Args:
        paddle: The package.
        program: ``.json``, with the parameters beside it.
        target: Checked.
        options: Checked.
    """
    config = paddle.inference.Config(str(program), str(program.with_suffix(".pdiparams")))
    config.disable_glog_info()
    if target.device == "gpu":
        kinds = paddle.inference.PrecisionType
        kind = {"fp32": kinds.Float32, "fp16": kinds.Half, "bf16": kinds.Bfloat16}[target.precision]
        config.enable_use_gpu(options.gpu_memory, target.number, kind)
        return config
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(target.threads)
    if not options.onednn:
        if target.precision == "bf16":
            raise UnsupportedError("precision='bf16' with onednn=False: only oneDNN computes bf16; drop one")
        config.disable_mkldnn()
        return config
    config.enable_mkldnn()
    # By default matrices are laid out anew, and kept, for each of the last ten shapes of all inputs together.
    config.set_mkldnn_cache_capacity(0)
    # Other operations stay Paddle's own: oneDNN's refuse empty tensors, and its calls cost more than small ones take.
    config.delete_pass("onednn_placement_pass")
    if target.precision == "bf16":
        config.enable_mkldnn_bfloat16()
    return config


def to_tensorrt(
    paddle: Any,
    program: Path,
    converted: Path,
    signature: Signature,
    target: Target,
    options: PaddleOptions,
    limits: Profile,
) -> tuple[Profile, Profile, Profile]:
    """Have Paddle's converter write ``converted``, in which TensorRT computes what it knows; return the profile."""
    profile = options.tensorrt_profile or ((1, 1, 1), _usual(limits), limits)
    _check_covers(profile, limits)
    try:
        from paddle.tensorrt.export import Input, PrecisionMode, TensorRTConfig
    except ImportError as error:
        raise UnsupportedError(
            "tensorrt=True: this build of Paddle has no TensorRT converter; install a paddlepaddle-gpu that has, and "
            "tensorrt beside it, or leave tensorrt=False"
        ) from error
    samples = [sample_inputs(signature, shape) for shape in profile]
    inputs = [
        Input(warmup_data=tuple(sample[name] for sample in samples), input_data_type=None, name=name)
        for name in signature.input_names
    ]
    mode = {"fp32": PrecisionMode.FP32, "fp16": PrecisionMode.FP16, "bf16": PrecisionMode.BF16}
    settings = TensorRTConfig(
        inputs,
        save_model_dir=str(converted.with_suffix("")),
        precision_mode=mode[target.precision],
        workspace_size=options.tensorrt_workspace,
    )
    try:
        with paddle.static.scope_guard(paddle.static.Scope()):  # else the weights stay in the global one
            paddle.tensorrt.convert(str(program.with_suffix("")), settings)
    except Exception as error:  # its exceptions have no common base
        raise BackendError(f"Paddle's TensorRT converter failed: {error}") from error
    return profile


def sample_inputs(signature: Signature, shape: Profile) -> Mapping[str, npt.NDArray[Any]]:
    """Valid inputs of a shape: every row of the past counts, and every row's logits are wanted."""
    count, tokens, places = shape
    past = np.zeros((count, signature.kv_heads, places, signature.head_dim), signature.cache_dtype)
    rows = np.arange(count * tokens)
    return {
        "ids": np.zeros((count, tokens), np.int64),
        "positions": np.broadcast_to(places + np.arange(tokens), (count, tokens)).copy(),
        "lengths": np.full(count, places),
        "logit_rows": rows,
        "hidden_rows": rows,
        **dict.fromkeys(signature.past_names, past),
    }


def check_device_options(options: PaddleOptions, target: Target) -> None:
    """Raise ArgumentError for options that mean something on the other kind of device alone."""
    plain = PaddleOptions()
    other = {"cpu": "gpu_memory", "gpu": "onednn"}[target.device]
    if getattr(options, other) != getattr(plain, other):
        raise ArgumentError(
            f"{other}={getattr(options, other)!r}: means nothing on the {target.device}; leave it out"
        )


def _usual(limits: Profile) -> Profile:
    return 1, 1, min(512, limits[2])


def _check_profile(profile: object) -> None:
    message = f"tensorrt_profile={profile!r}: must be three ascending (sequences, tokens, places), the least (1, 1, 1)"
    if not isinstance(profile, tuple) or len(profile) != 3:
        raise ArgumentError(message)
    for shape in profile:
        if not isinstance(shape, tuple) or len(shape) != 3 or not all(isinstance(n, int) for n in shape):
            raise ArgumentError(message)
    if any(not 1 == low <= usual <= high for low, usual, high in zip(*profile, strict=True)):
        raise ArgumentError(message)


def _check_covers(profile: tuple[Profile, Profile, Profile], limits: Profile) -> None:
    """Steps up to these limits will come, in the middle of answers; only more sequences can be divided."""
    if any(high < limit for high, limit in zip(profile[2][1:], limits[1:], strict=True)):
        raise ArgumentError(
            f"tensorrt_profile: ends at (sequences, tokens, places) {profile[2]}, and steps come with up to "
            f"{limits[1]} tokens and {limits[2]} places; widen it, or lower max_step_tokens and max_context"
        )


def _check_gpu(paddle: Any, device: str | None, number: int) -> None:
    if not paddle.is_compiled_with_cuda():
        raise UnsupportedError(
            f"device={device!r}: this Paddle was built without CUDA; install paddlepaddle-gpu from Paddle's own "
            "package index instead of paddlepaddle (their installation page has the command), or use device='cpu'"
        )
    count = paddle.device.cuda.device_count()
    if number >= count:
        raise UnsupportedError(f"device={device!r}: Paddle sees {count} GPUs here")
