"""The backend ``onnxruntime``: the static graph on ONNX Runtime, weights handed over in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from typing import Any

import numpy as np

from ernie_accel import env, system
from ernie_accel.backends.base import Availability, LoadOptions
from ernie_accel.backends.static_graph.backend import (
    DEFAULT_STEP_TOKENS,
    StaticGraphBackend,
    check_step_tokens,
)
from ernie_accel.backends.static_graph.executor import Array, ExecutorInfo
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError, BackendError, MissingExtraError, UnsupportedError
from ernie_accel.export.signature import Signature

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeOptions"]

OLDEST = (1, 17)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""What a device of that name runs on, best first."""


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeOptions:
    """Settings of the backend ``onnxruntime`` that no other has.

    Attributes:
        max_step_tokens: Largest number of tokens of one step.
        memory_arena: Keep working memory between steps: faster, and as much as the largest step took stays taken.
        spin: Threads wait for each other by spinning: faster, and they use processor time between steps.
    """

    max_step_tokens: int = DEFAULT_STEP_TOKENS
    memory_arena: bool = True
    spin: bool = True

    def __post_init__(self) -> None:
        check_step_tokens(self.max_step_tokens)
        for name in ("memory_arena", "spin"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: must be True or False")


class OnnxRuntimeBackend(StaticGraphBackend[OnnxRuntimeOptions]):
    """fp32 on any CPU that ONNX Runtime runs on."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32",)
    options_type = OnnxRuntimeOptions

    def available(self) -> Availability:
        """Say whether ONNX Runtime and onnx are installed; imports neither."""
        version = _installed_version()
        advice = "Install them with: pip install 'ernie-accel[onnxruntime]'."
        if version is None or util.find_spec("onnx") is None:
            missing = "onnxruntime" if version is None else "onnx"
            return Availability(False, f"The package {missing} is not installed.", advice)
        if _numbers(version) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            return Availability(
                False,
                f"onnxruntime {version} is too old: {oldest} is needed.",
                "Update it with: pip install --upgrade onnxruntime.",
            )
        return Availability(True, f"Runs on onnxruntime {version}.")

    def _executor(
        self, checkpoint: Checkpoint, signature: Signature, options: LoadOptions, own: OnnxRuntimeOptions
    ) -> OnnxRuntimeExecutor:
        providers = _providers(options.device)
        threads = _threads(options.threads)
        session = _session_from_weights(
            checkpoint, signature, _session_options(own, threads), providers, options
        )
        return OnnxRuntimeExecutor(session, {"threads": threads, "device": options.device or "cpu"})


class OnnxRuntimeExecutor:
    """A session of ONNX Runtime as an ``Executor``. On the CPU it reads inputs where they lie."""

    def __init__(self, session: Any, details: Mapping[str, Any]) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        engine = f"onnxruntime {_import_onnxruntime().__version__}"
        self._info = ExecutorInfo(engine=engine, details={**details, "providers": session.get_providers()})

    @property
    def info(self) -> ExecutorInfo:
        """Fixed properties."""
        return self._info

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Plain memory, which the system gives when it is first written."""
        return np.zeros(shape, dtype)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one step."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"{self._info.engine} failed: {error}") from error

    def close(self) -> None:
        """Drop the session and its memory."""
        self._session = None


def _session_from_weights(
    checkpoint: Checkpoint,
    signature: Signature,
    session_options: Any,
    providers: list[str],
    options: LoadOptions,
) -> Any:
    """Make the graph and hand the weights over in memory: no file is written, and no weight is held twice."""
    from ernie_accel.export.onnx import OnnxBuilder, in_memory_model
    from ernie_accel.export.step import write_step
    from ernie_accel.export.weights import StepWeights

    runtime = _import_onnxruntime()
    builder = OnnxBuilder()
    write_step(builder, StepWeights(checkpoint, checkpoint.config), signature)
    values = []
    done, total = 0, sum(stored.nbytes for stored in builder.stored.values())
    for stored in builder.stored.values():
        values.append(runtime.OrtValue.ortvalue_from_numpy(stored.load()))
        done += stored.nbytes
        if options.progress is not None:
            options.progress("load", done, total)
    try:
        session_options.add_external_initializers(list(builder.stored), values)
        return runtime.InferenceSession(in_memory_model(builder), session_options, providers=providers)
    except Exception as error:  # its exceptions have no common base
        raise BackendError(f"onnxruntime {runtime.__version__} refuses the graph: {error}") from error


def _session_options(own: OnnxRuntimeOptions, threads: int) -> Any:
    settings = _import_onnxruntime().SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.enable_cpu_mem_arena = own.memory_arena
    settings.enable_mem_pattern = False  # it plans for one shape, and shapes change from step to step
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(own.spin)))
    return settings


def _providers(device: str | None) -> list[str]:
    kind = (device or "cpu").split(":")[0]
    if kind not in PROVIDERS:
        raise UnsupportedError(f"device={device!r}: backend 'onnxruntime' has {', '.join(PROVIDERS)}")
    here = _import_onnxruntime().get_available_providers()
    if PROVIDERS[kind][0] not in here:
        raise UnsupportedError(
            f"device={device!r}: this build of onnxruntime has {', '.join(here)}; install onnxruntime-gpu instead of "
            "onnxruntime, or use device='cpu'"
        )
    return list(PROVIDERS[kind])


def _threads(threads: int | None) -> int:
    threads = threads or env.threads() or system.available_threads()
    if not 1 <= threads <= 1024:
        raise ArgumentError(f"threads={threads}: must be from 1 to 1024")
    return threads


def _installed_version() -> str | None:
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", "backend 'onnxruntime'") from error
    return onnxruntime
