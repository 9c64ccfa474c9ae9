"""The backend ``onnxruntime``: the static graph on ONNX Runtime, weights handed over in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from typing import Any, ClassVar

import numpy as np

from ernie_accel import env, system
from ernie_accel.backends.base import Availability, LoadOptions
from ernie_accel.backends.static_graph.backend import (
    DEFAULT_STEP_TOKENS,
    StaticGraphBackend,
    check_graph_options,
    check_step_tokens,
    choose_threads,
)
from ernie_accel.backends.static_graph.executor import Array, ExecutorInfo
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.exported import ExportedCheckpoint
from ernie_accel.errors import ArgumentError, BackendError, MissingExtraError, UnsupportedError
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import Fusions, write_step
from ernie_accel.types import Progress

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeOptions"]

OLDEST, OLDEST_INT8 = (1, 17), (1, 22)
INT8_BLOCKS = (32, 64, 128)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
SILENT = {"ORT_DISABLE_TELEMETRY": "1"}
"""While it is loaded: it looks once, and then makes no connection and no files in the temporary directory."""
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "gpu": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""What a device of that name runs on, best first."""


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeOptions:
    """Settings of the backend ``onnxruntime`` that no other has.

    Attributes:
        max_step_tokens: Largest number of tokens of one step.
        int8_block: Columns that share a scale with ``precision="int8"``: 32, 64 or 128. More are faster and less exact.
        fusions: What the graph joins; less is slower and good for measuring only.
        memory_arena: Keep working memory between steps: faster, and as much as the largest step took stays taken.
        spin: Threads wait for each other by spinning: faster, and they use processor time between steps.
    """

    max_step_tokens: int = DEFAULT_STEP_TOKENS
    int8_block: int = 32
    fusions: Fusions = field(default_factory=Fusions)
    memory_arena: bool = True
    spin: bool = True

    def __post_init__(self) -> None:
        check_step_tokens(self.max_step_tokens)
        if self.int8_block not in INT8_BLOCKS:
            raise ArgumentError(f"int8_block={self.int8_block!r}: must be 32, 64 or 128")
        for name in ("memory_arena", "spin"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: must be True or False")


class OnnxRuntimeBackend(StaticGraphBackend[OnnxRuntimeOptions]):
    """fp32 on any CPU that ONNX Runtime runs on."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8", "fp16")
    options_type = OnnxRuntimeOptions
    loading_share: ClassVar[Mapping[str, float]] = {
        "fp32": 1.42,
        "int8": 1.42,
    }  # measured: values are handed over, and copied while matrices are packed
    head_again = True

    def _cache_dtype(self, precision: str) -> str:
        return "float16" if precision == "fp16" else "float32"

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
        _check_precision(signature.precision, options.device, isinstance(checkpoint, ExportedCheckpoint))
        threads = choose_threads(options.threads)
        opener = _Opener(_session_options(own, threads), _providers(options.device))
        if isinstance(checkpoint, ExportedCheckpoint):
            check_graph_options(checkpoint, own, ("fusions", "int8_block"))
            session = opener.from_file(checkpoint)
        else:
            session = opener.from_weights(checkpoint, signature, own, options.progress)
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


@dataclass(frozen=True)
class _Opener:
    """Makes sessions."""

    settings: Any
    providers: list[Any]

    def from_file(self, checkpoint: ExportedCheckpoint) -> Any:
        """Open what ``ernie-accel export`` wrote."""
        return self._open(str(checkpoint.graph_path("onnx")))

    def from_weights(
        self, checkpoint: Checkpoint, signature: Signature, own: OnnxRuntimeOptions, progress: Progress | None
    ) -> Any:
        """Make the graph and hand the weights over in memory, so that nothing is written to disk.

        ONNX Runtime drops each matrix that it has packed its own way; a tied table is also looked up in, and stays.
        """
        from ernie_accel.export.onnx import in_memory_model
        from ernie_accel.export.onnx_precisions import make_builder
        from ernie_accel.export.weights import StepWeights

        builder = make_builder(signature.precision, block=own.int8_block)
        write_step(builder, StepWeights(checkpoint, checkpoint.config), signature, fusions=own.fusions)
        done, total = 0, sum(stored.nbytes for stored in builder.stored.values())
        values = []
        for stored in builder.stored.values():
            values.append(_import_onnxruntime().OrtValue.ortvalue_from_numpy(stored.load()))
            done += stored.nbytes
            if progress is not None:
                progress("load", done, total)
        self.settings.add_external_initializers(list(builder.stored), values)
        session = self._open(in_memory_model(builder))
        del values
        system.return_freed_memory()
        return session

    def _open(self, model: str | bytes) -> Any:
        runtime = _import_onnxruntime()
        try:
            return runtime.InferenceSession(model, self.settings, providers=self.providers)
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


def _providers(device: str | None) -> list[Any]:
    kind, _, number = (device or "cpu").partition(":")
    if kind not in PROVIDERS or (number and (kind == "cpu" or not number.isdigit())):
        raise UnsupportedError(
            f"device={device!r}: backend 'onnxruntime' has {', '.join(PROVIDERS)}, and cuda:1 for the second of several"
        )
    here = _import_onnxruntime().get_available_providers()
    if PROVIDERS[kind][0] not in here:
        raise UnsupportedError(
            f"device={device!r}: this build of onnxruntime has {', '.join(here)}; install onnxruntime-gpu instead of "
            "onnxruntime, or use device='cpu'"
        )
    settings = {"device_id": number} if number else {}
    return [(name, {} if name.startswith("CPU") else settings) for name in PROVIDERS[kind]]


def _check_precision(precision: str, device: str | None, exported: bool) -> None:
    on_cpu = (device or "cpu").startswith("cpu")
    if precision == "fp16" and on_cpu and not exported:
        raise UnsupportedError(
            "precision='fp16': ONNX Runtime has no fp16 products for this device and would convert to fp32; use fp32"
        )
    version = _import_onnxruntime().__version__
    if precision == "int8" and _numbers(version) < OLDEST_INT8:
        raise UnsupportedError(
            f"precision='int8': onnxruntime {version} has no fast int8 products, {'.'.join(map(str, OLDEST_INT8))} "
            "has: pip install --upgrade onnxruntime"
        )


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
    """Return the package. From 1.29 on it reports its use to its makers unless a variable forbids that as it loads."""
    try:
        with env.unchanged(SILENT):
            import onnxruntime
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", "backend 'onnxruntime'") from error
    return onnxruntime
