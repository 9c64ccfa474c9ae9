"""The backend ``paddle``: the static graph on Paddle Inference 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_accel.architecture.counts import Part, parameter_counts
from ernie_accel.architecture.split import Division, check_division, rank_config
from ernie_accel.backends.base import Availability, Footprint, LoadOptions
from ernie_accel.backends.static_graph.backend import StaticGraphBackend, check_graph_options, choose_threads
from ernie_accel.backends.static_graph.executor import Array, Executor, ExecutorInfo
from ernie_accel.backends.static_graph.paddle_devices import check_device_memory, group_targets
from ernie_accel.backends.static_graph.paddle_group import PaddleGroupExecutor, group_signature, write_parts
from ernie_accel.backends.static_graph.paddle_settings import (
    PaddleOptions,
    Profile,
    Target,
    check_device_options,
    make_config,
    to_tensorrt,
)
from ernie_accel.backends.static_graph.scratch import no_room, scratch
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.exported import ExportedCheckpoint
from ernie_accel.errors import BackendError, UnsupportedError
from ernie_accel.export.paddle_package import import_paddle, installed_version, version_problem
from ernie_accel.export.signature import Signature

if TYPE_CHECKING:
    from ernie_accel.architecture.config import ModelConfig

__all__ = ["PaddleBackend", "PaddleExecutor", "open_predictor"]

PACKAGE_BYTES = 144 << 20
"""Paddle imported (107 MiB), the program in memory, and what its kernels keep beside the weights."""

FEW_ROWS = 4
"""So many are multiplied in the layout of one."""


class PaddleBackend(StaticGraphBackend[PaddleOptions]):
    """fp32 and bf16 on a CPU, by oneDNN; fp32, fp16 and bf16 on a GPU."""

    name = "paddle"
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    options_type = PaddleOptions
    splits = True

    def available(self) -> Availability:
        """Say whether a Paddle that can be used is installed; imports nothing."""
        version = installed_version()
        if version is None:
            return Availability(
                False,
                "The package paddlepaddle is not installed.",
                "Install it with: pip install 'ernie-accel[paddle]'.",
            )
        if problem := version_problem(version):
            return Availability(False, problem, "Install another with: pip install 'ernie-accel[paddle]'.")
        return Availability(True, f"Runs on Paddle Inference {version}.")

    def estimate(self, config: ModelConfig, options: LoadOptions) -> Footprint:
        """Bytes beside the weights, of one rank; with oneDNN the first steps also lay the matrices out anew.

        Parameters are loaded in fp32 on a CPU, whatever they become. The process that starts several has loaded Paddle
        too, to write their programs; each of them bears a part of that.
        """
        own: PaddleOptions = self._own(options)
        ranks, precision = _ranks(options), self._precision(options)
        counts = parameter_counts(config, Part(tensor=ranks))
        package = PACKAGE_BYTES if ranks == 1 else PACKAGE_BYTES * (ranks + 1) // ranks
        on_cpu = (options.device or "cpu") == "cpu"
        anew = _laid_out(counts, precision, options.max_batch) if own.onednn and on_cpu else 0
        plain = 2 * sum(counts.values()) if precision == "bf16" and on_cpu else 0
        if ranks > 1:
            check_division(config, Division(ranks))
            config, options = rank_config(config, ranks), replace(options, tensor_parallel=1)
        found = super().estimate(config, options)
        return replace(found, runtime=package + plain, scratch=found.scratch + anew)

    def _executor(
        self, checkpoint: Checkpoint, signature: Signature, options: LoadOptions, own: PaddleOptions
    ) -> Executor:
        if _ranks(options) > 1:
            return self._group(checkpoint, options, own)
        paddle = import_paddle()
        target = Target.of(paddle, options.device, signature.precision, choose_threads(options.threads))
        if own.tensorrt and target.device != "gpu":
            raise UnsupportedError("tensorrt=True: TensorRT runs on a GPU; set device='gpu' too")
        check_device_options(own, target)
        profile: tuple[Profile, Profile, Profile] | None = None
        with scratch() as folder:
            program = _program(checkpoint, signature, target, options, own, folder)
            if own.tensorrt:
                plain, program = program, folder / "tensorrt.json"
                limits = self._limits(checkpoint.config, options, own)
                profile = to_tensorrt(paddle, plain, program, signature, target, own, limits)
            predictor = open_predictor(paddle, program, target, own)
        return PaddleExecutor(paddle, predictor, signature, target, _details(target, own), profile)

    def _signature(self, config: ModelConfig, options: LoadOptions) -> Signature:
        ranks, signature = _ranks(options), super()._signature(config, options)
        if ranks == 1:
            return signature
        check_division(config, Division(ranks))
        return group_signature(signature, config, ranks)

    def _group(self, checkpoint: Checkpoint, options: LoadOptions, own: PaddleOptions) -> Executor:
        ranks, threads = _ranks(options), choose_threads(options.threads)
        if isinstance(checkpoint, ExportedCheckpoint):
            raise UnsupportedError(
                f"tensor_parallel={ranks}: {checkpoint.directory} holds one graph for one process; load the "
                "checkpoint that it was made of"
            )
        if own.tensorrt:
            raise UnsupportedError(
                f"tensor_parallel={ranks} with tensorrt=True: the converter makes engines for one process; drop one"
            )
        paddle = import_paddle()
        targets = group_targets(paddle, options.device, self._precision(options), threads, ranks)
        check_device_options(own, targets[0])
        check_device_memory(paddle, targets, self._device_bytes(checkpoint.config, options))
        with scratch() as folder:
            signature, programs = write_parts(
                checkpoint, ranks, targets[0], folder, options.progress, own.fusions
            )
            return PaddleGroupExecutor(programs, signature, checkpoint.config, targets=targets, own=own)

    def _device_bytes(self, config: ModelConfig, options: LoadOptions) -> int:
        """What one GPU holds at least: its parameters, which are read in fp32, and the working memory of a step."""
        held = sum(parameter_counts(config, Part(tensor=_ranks(options))).values())
        return 4 * held + self.estimate(config, options).scratch

    def _limits(self, config: ModelConfig, options: LoadOptions, own: PaddleOptions) -> Profile:
        info = self._info(config, self._signature(config, options), options, own.max_step_tokens)
        return info.max_sequences, info.max_step_tokens, info.max_context


class PaddleExecutor:
    """A predictor as an ``Executor``. On a CPU it reads keys and values where they lie.

    Args:
        paddle: The package.
        predictor: Has the program loaded.
        signature: Of the program.
        target: Where it runs.
        details: For ``model.info``.
        profile: The shapes that TensorRT has prepared for; None takes any.
    """

    def __init__(
        self,
        paddle: Any,
        predictor: Any,
        signature: Signature,
        target: Target,
        details: Mapping[str, Any],
        profile: tuple[Profile, Profile, Profile] | None = None,
    ) -> None:
        self._paddle = paddle
        self._predictor = predictor
        self._profile = profile
        self._shares = target.device == "cpu"
        self._inputs = {name: predictor.get_input_handle(name) for name in signature.input_names}
        handles = [predictor.get_output_handle(name) for name in predictor.get_output_names()]
        self._outputs = dict(zip(signature.output_names, handles, strict=True))
        self._shared: dict[str, tuple[Array, Any]] = {}
        self._info = ExecutorInfo(
            engine=f"Paddle Inference {paddle.__version__}",
            empty_rows=False,  # oneDNN refuses a product of no rows, and attention to no past
            empty_past=False,
            max_sequences=None if profile is None else profile[2][0],
            details=details,
        )

    @property
    def info(self) -> ExecutorInfo:
        """Fixed properties."""
        return self._info

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Plain memory, which the system gives when it is first written."""
        return np.zeros(shape, dtype)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one step. Raises UnsupportedError for shapes outside TensorRT's profile."""
        if self._profile is not None:
            _check_shape(self._profile, inputs)
        try:
            for name, values in inputs.items():
                self._give(name, values)
            self._predictor.run()
            return {name: handle.copy_to_cpu() for name, handle in self._outputs.items()}
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"{self._info.engine} failed: {_short(error)}") from error

    def close(self) -> None:
        """Drop the predictor and its memory."""
        self._inputs, self._outputs, self._shared = {}, {}, {}
        self._predictor = None

    def _give(self, name: str, values: Array) -> None:
        """Hand one input over: keys and values where they lie, mostly as in the step before; the rest copied."""
        if not self._shares or not name.startswith("past_"):
            self._inputs[name].reshape(list(values.shape))
            self._inputs[name].copy_from_cpu(np.ascontiguousarray(values))
            return
        known = self._shared.get(name)
        if known is not None and _same_memory(known[0], values):
            return
        tensor = self._paddle.base.core.DenseTensor()
        tensor.set(values, self._paddle.CPUPlace(), True)
        self._inputs[name].share_external_data(tensor)
        self._shared[name] = values, tensor


def _laid_out(counts: Mapping[str, int], precision: str, sequences: int | None) -> int:
    """Bytes of the layouts that oneDNN keeps beside the plain one: in fp32 for few rows and for many, in bf16 for all.

    The head has many rows only where many sequences draw together, or where every token of a prompt is scored.
    """
    tied = counts["head"] == 0
    head = counts["embedding"] if tied else counts["head"]
    matrices = sum(counts.values()) - (0 if tied else counts["embedding"])
    if precision == "bf16":
        return 2 * matrices
    many = matrices - head if sequences is not None and sequences <= FEW_ROWS else matrices
    return 4 * (matrices + many)


def _ranks(options: LoadOptions) -> int:
    return 1 if options.tensor_parallel == "auto" else options.tensor_parallel


def _program(
    checkpoint: Checkpoint,
    signature: Signature,
    target: Target,
    options: LoadOptions,
    own: PaddleOptions,
    folder: Path,
) -> Path:
    """The program's file: that of an exported directory, or one that is written to ``folder`` now."""
    if isinstance(checkpoint, ExportedCheckpoint):
        check_graph_options(checkpoint, own, ("fusions",))
        return checkpoint.graph_path("paddle")
    from ernie_accel.export.paddle_file import write_graph

    try:
        return folder / write_graph(
            checkpoint,
            signature,
            folder,
            options.progress,
            device=target.device,
            fusions=own.fusions,
            stage="load",
        )
    except OSError as error:
        raise no_room(folder, error) from error


def open_predictor(paddle: Any, program: Path, target: Target, options: PaddleOptions) -> Any:
    """Have Paddle Inference load a program. Raises BackendError if it refuses."""
    config = make_config(paddle, program, target, options)
    try:
        return paddle.inference.create_predictor(config)
    except Exception as error:  # its exceptions have no common base
        raise BackendError(
            f"Paddle Inference {paddle.__version__} refuses the program: {_short(error)}"
        ) from error


def _details(target: Target, own: PaddleOptions) -> Mapping[str, Any]:
    if target.device == "gpu":
        return {"device": f"gpu:{target.number}", "tensorrt": own.tensorrt}
    return {"device": "cpu", "threads": target.threads, "onednn": own.onednn}


def _same_memory(a: Array, b: Array) -> bool:
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.dtype == b.dtype


def _check_shape(profile: tuple[Profile, Profile, Profile], inputs: Mapping[str, Array]) -> None:
    count, tokens = inputs["ids"].shape
    shape = count, tokens, next(v.shape[2] for name, v in inputs.items() if name.startswith("past_"))
    least, _, most = profile
    if any(not low <= length <= high for low, length, high in zip(least, shape, most, strict=True)):
        raise UnsupportedError(
            f"a step of (sequences, tokens, places) {shape}: TensorRT has prepared for {least} to {most}; widen "
            "PaddleOptions(tensorrt_profile=...)"
        )


def _short(error: Exception) -> str:
    """The message without the C++ stack that comes before it."""
    text = str(error).strip()
    for line in text.splitlines():
        if line.startswith(("InvalidArgument", "NotFound", "Unimplemented", "Fatal")) or "Error:" in line:
            return line.strip()
    return text.splitlines()[-1].strip() if text else type(error).__name__
