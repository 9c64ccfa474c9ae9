"""The backends on FastDeploy 1.x: ``fastdeploy-ort``, ``fastdeploy-openvino``, and what ``tensorrt`` has in common.

Its runtime ends the process at many mistakes, so it runs in a child (``worker.py``, ``child.py``), which may be another
Python than ours. It reads the graph from a file, which is written for it and removed once it is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ernie_accel import system
from ernie_accel.backends.base import Availability, LoadOptions
from ernie_accel.backends.checks import CPU_ONLY
from ernie_accel.backends.static_graph import interpreter
from ernie_accel.backends.static_graph.backend import StaticGraphBackend, choose_threads
from ernie_accel.backends.static_graph.executor import ExecutorInfo
from ernie_accel.backends.static_graph.fastdeploy_executor import ChildExecutor, ShapeCheck
from ernie_accel.backends.static_graph.fastdeploy_options import FastDeployRuntimeOptions
from ernie_accel.backends.static_graph.interpreter import Interpreter
from ernie_accel.backends.static_graph.scratch import no_room, scratch
from ernie_accel.backends.static_graph.worker import Worker
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.checkpoint.exported import ExportedCheckpoint
from ernie_accel.errors import BackendUnavailableError, CapacityError, UnsupportedError
from ernie_accel.export.signature import Signature

__all__ = ["FastDeployBackend", "FastDeployOpenVinoBackend", "FastDeployOrtBackend", "Special"]

ERROR_MARK = "[ERROR]"
"""What FastDeploy writes where a step failed; its ``infer`` returns as if nothing had happened."""

GROUPS_ROWS = False
"""Every expert computes every row: where one has none, ONNX Runtime 1.12 gives NaN and OpenVINO 2023 ends."""

FP32_ISA = ("DNNL_MAX_CPU_ISA", "AVX512_CORE_VNNI")
"""Keeps the OpenVINO in FastDeploy 1.0.7 from computing fp32 in bfloat16 on processors that have it."""


@dataclass(frozen=True)
class Special:
    """Further arguments of ``child.Server.open``, and what to do when it succeeded, and then in any case."""

    settings: Mapping[str, Any]
    keep: Callable[[], None] = lambda: None
    discard: Callable[[], None] = lambda: None


class FastDeployBackend(StaticGraphBackend[Any]):
    """What the three have in common. A subclass sets ``runtime``, a name that ``child.py`` knows."""

    runtime: ClassVar[str]
    gpu: ClassVar[bool] = False
    empty: ClassVar[bool] = False
    """Whether it computes rightly with no rows and with no past; see ``ExecutorInfo``."""
    options_type = FastDeployRuntimeOptions

    def available(self) -> Availability:
        """Say whether an interpreter with FastDeploy 1.x is there; imports nothing of it."""
        return self.available_for(LoadOptions())

    def available_for(self, options: LoadOptions) -> Availability:
        """As ``available``, for the interpreter that the options name."""
        own = self._own(options)
        if sys.platform == "win32":
            return Availability(
                False, "FastDeploy is run in a child process over a Unix socket.", "Use Linux."
            )
        if find_spec("onnx") is None:
            reason = "The package onnx, which writes the graph, is not installed."
            return Availability(False, reason, "Run: pip install 'ernie-accel[export]'")
        try:
            found = interpreter.find(own.python)
        except BackendUnavailableError as error:
            message = str(error)
            return Availability(False, f"{message[0].upper()}{message[1:]}.", "Name another interpreter.")
        return found.availability(self.gpu)

    def _executor(
        self, checkpoint: Checkpoint, signature: Signature, options: LoadOptions, own: Any
    ) -> ChildExecutor:
        found = interpreter.find(own.python)
        answer = found.availability(self.gpu)
        if not answer.ok:
            raise BackendUnavailableError(f"backend {self.name!r}: {answer.reason} {answer.next_step}")
        settings = self._settings(signature, options)
        check = self._shape_check(signature, own)
        try:
            worker = Worker(found.path, self.name, self._environment(found, signature), ERROR_MARK)
        except MemoryError as error:
            raise CapacityError(f"backend {self.name!r}: {error}") from error
        try:
            info = self._load(worker, checkpoint, signature, settings, options, own)
        except BaseException:
            worker.close()
            raise
        return ChildExecutor(worker, signature, info, own.step_timeout, check)

    def _load(
        self,
        worker: Worker,
        checkpoint: Checkpoint,
        signature: Signature,
        settings: dict[str, Any],
        options: LoadOptions,
        own: Any,
    ) -> ExecutorInfo:
        """Write the graph while the child imports FastDeploy, and have it loaded."""
        worker.begin("import fastdeploy", op="start")
        with scratch() as folder:
            path = self._graph(folder, checkpoint, signature, options)
            found = worker.finish("import fastdeploy", own.load_timeout)
            special = self._special(path, signature, own)
            request = {"runtime": self.runtime, "model": str(path), **settings, **special.settings}
            try:
                worker.ask("load the graph", own.load_timeout, op="open", **request)
                special.keep()
            finally:
                special.discard()
        details = {**settings, "python": found["python"], "numpy": found["numpy"]}
        return ExecutorInfo(
            engine=f"FastDeploy {found['fastdeploy']} ({self.runtime})",
            empty_rows=self.empty,
            empty_past=self.empty,
            max_sequences=self._max_sequences(own),
            details=details,
        )

    def _graph(
        self, folder: Path, checkpoint: Checkpoint, signature: Signature, options: LoadOptions
    ) -> Path:
        """Return the graph's file, which is written into the folder unless the checkpoint is an exported one."""
        if isinstance(checkpoint, ExportedCheckpoint):
            if checkpoint.config.moe_num_experts:
                raise UnsupportedError(
                    f"{checkpoint.directory}: backend {self.name!r} needs another form of a mixture of experts than "
                    "the exported one; load the checkpoint that it was made of"
                )
            return checkpoint.graph_path("onnx").absolute()
        from ernie_accel.export.onnx_file import write_onnx
        from ernie_accel.export.onnx_precisions import make_builder
        from ernie_accel.export.step import write_step
        from ernie_accel.export.weights import StepWeights

        graph = replace(signature, precision=self._graph_precision(signature.precision))
        builder = make_builder(graph.precision, groups_rows=GROUPS_ROWS)
        write_step(builder, StepWeights(checkpoint, checkpoint.config), graph)
        try:
            return folder / write_onnx(builder, folder, options.progress, stage="load")
        except OSError as error:
            raise no_room(str(folder), error) from error

    def _settings(self, signature: Signature, options: LoadOptions) -> dict[str, Any]:
        """Return device and threads, as ``child.Server.open`` takes them."""
        if options.device not in (None, "cpu"):
            raise UnsupportedError(f"device={options.device!r}: backend {self.name!r} {CPU_ONLY}")
        return {"threads": choose_threads(options.threads)}

    def _environment(self, found: Interpreter, signature: Signature) -> dict[str, str]:
        return interpreter.environment(found.path)

    def _graph_precision(self, precision: str) -> str:
        """Return the precision in which the graph's weights are written."""
        return precision

    def _special(self, graph: Path, signature: Signature, own: Any) -> Special:
        """Return what else goes with loading the graph, which has been written."""
        return Special({})

    def _max_sequences(self, own: Any) -> int | None:
        """Return how many sequences a call may have at most."""
        return None

    def _shape_check(self, signature: Signature, own: Any) -> ShapeCheck | None:
        return None


class FastDeployOrtBackend(FastDeployBackend):
    """fp32 on the CPU through the ONNX Runtime in FastDeploy."""

    name = "fastdeploy-ort"
    precisions = ("fp32",)
    runtime_bytes = 100 << 20  # two processes
    # Measured: the file, its parsed form, and matrices before and after they are packed.
    loading_share: ClassVar[Mapping[str, float]] = {"fp32": 3.05}
    head_again = True
    runtime = "ort"
    empty = True


class FastDeployOpenVinoBackend(FastDeployBackend):
    """fp32, and bf16 where the processor has it, through the OpenVINO in FastDeploy."""

    name = "fastdeploy-openvino"
    precisions = ("fp32", "bf16")
    runtime_bytes = 130 << 20
    # Measured; the graph holds fp32, and the matrices in the precision of their products lie beside it.
    loading_share: ClassVar[Mapping[str, float]] = {"fp32": 2.97, "bf16": 6.92}
    kept_again: ClassVar[Mapping[str, int]] = {"fp32": 4, "bf16": 4}
    head_again = True
    runtime = "openvino"

    def _graph_precision(self, precision: str) -> str:
        return "fp32"  # it rounds the weights itself

    def _settings(self, signature: Signature, options: LoadOptions) -> dict[str, Any]:
        flags = system.processor_flags()
        if signature.precision == "bf16" and "avx512_bf16" not in flags:
            raise UnsupportedError(
                "precision='bf16': the OpenVINO in FastDeploy computes in it only on processors with AVX512-BF16, "
                "which this one lacks; use precision='fp32', or backend 'native'"
            )
        return super()._settings(signature, options)

    def _environment(self, found: Interpreter, signature: Signature) -> dict[str, str]:
        variables = super()._environment(found, signature)
        name, isa = FP32_ISA
        if signature.precision == "fp32":
            variables[name] = isa
        else:
            variables.pop(name, None)
        return variables
