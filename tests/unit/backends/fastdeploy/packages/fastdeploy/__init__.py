"""Stands in for FastDeploy 1.0.7: its names, what it does on mistakes, and a model that counts.

``FAKE_FASTDEPLOY`` holds JSON: sizes of the model (``vocab``, ``hidden``, ``layers``), and a ``fault`` to commit. What
options were set is written to the file ``FAKE_FASTDEPLOY_LOG``, if there is one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from fastdeploy.c_lib_wrap import FDTensor

__version__ = "1.0.7"

SETTINGS: dict[str, Any] = json.loads(os.environ.get("FAKE_FASTDEPLOY", "{}"))
FAULT = SETTINGS.get("fault")


def record(name: str, *values: Any) -> None:
    if path := os.environ.get("FAKE_FASTDEPLOY_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, *values]) + "\n")


class ModelFormat:
    ONNX = "onnx"


class TrtOption:
    def set_shape(self, name: str, least: Any, best: Any, greatest: Any) -> None:
        record("set_shape", name, least, best, greatest)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("enable_fp16", "max_workspace_size", "serialize_file"):
            raise AttributeError(name)
        record(name, value)
        super().__setattr__(name, value)


class RuntimeOption:
    def __init__(self) -> None:
        self.trt_option = TrtOption()
        self.backend = ""

    def __getattr__(self, name: str) -> Any:
        known = (
            "use_cpu",
            "use_gpu",
            "use_ort_backend",
            "use_openvino_backend",
            "set_cpu_thread_num",
            "set_model_path",
        )
        if name not in known:
            raise AttributeError(name)
        return lambda *values, **named: record(name, *values, named)

    def use_trt_backend(self) -> None:
        record("use_trt_backend")
        if not SETTINGS.get("tensorrt"):
            print("[ERROR] The FastDeploy didn't compile with TrtBackend.", flush=True)
            os.abort()


class Info:
    def __init__(self, name: str) -> None:
        self.name = name


class Runtime:
    """The logits of a row are 1 at the id after its own, 0 elsewhere; new keys and values are its position."""

    def __init__(self, option: RuntimeOption) -> None:
        if FAULT == "refuse":
            raise AssertionError("Initialize Runtime Failed!")
        if FAULT == "abort at load":
            print("[ERROR] this graph has a defect", file=sys.stderr, flush=True)
            os.abort()
        record("environment", os.environ.get("DNNL_MAX_CPU_ISA"), sys.executable)
        if file := getattr(option.trt_option, "serialize_file", None):
            if os.path.exists(file):
                record("engine read")
            else:
                with open(file, "w", encoding="utf-8") as stream:
                    stream.write("engine")
        self.inputs: dict[str, np.ndarray[Any, Any]] = {}
        self.outputs: dict[str, np.ndarray[Any, Any]] = {}
        self.steps = 0

    def num_inputs(self) -> int:
        return 1

    def num_outputs(self) -> int:
        return 3

    def get_input_info(self, index: int) -> Info:
        return Info("ids")

    def get_output_info(self, index: int) -> Info:
        return Info(("logits", "hidden", "new")[index])

    def bind_input_tensor(self, name: str, tensor: FDTensor) -> None:
        self.inputs[name] = tensor.array

    def get_output_tensor(self, name: str) -> FDTensor:
        return FDTensor(self.outputs[name])

    def infer(self, inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        self.inputs = inputs
        self.zero_copy_infer()
        return list(self.outputs.values())

    def zero_copy_infer(self) -> None:
        self.steps += 1
        if FAULT in STEP_FAULTS and self.steps > SETTINGS.get("after", 0):
            STEP_FAULTS[FAULT](self)
        else:
            self.compute()

    def compute(self) -> None:
        ids, positions = self.inputs["ids"], self.inputs["positions"]
        batch, width = ids.shape
        kv_heads, size = self.inputs["past_key_0"].shape[1], self.inputs["past_key_0"].shape[3]
        following = (ids.reshape(-1)[self.inputs["logit_rows"]] + 1) % SETTINGS["vocab"]
        new = np.zeros((2 * SETTINGS["layers"], batch, kv_heads, width, size), np.float32)
        new += positions[None, :, None, :, None]
        self.outputs = {
            "logits": np.eye(SETTINGS["vocab"], dtype=np.float32)[following],
            "hidden": np.zeros((len(self.inputs["hidden_rows"]), SETTINGS["hidden"]), np.float32),
            "new": new,
        }

    def damage(self, name: str, change: Any) -> None:
        self.compute()
        self.outputs[name] = change(self.outputs[name])


def grandchild(runtime: Runtime) -> None:
    """Start a process that outlives everybody, and then wait for ever."""
    import subprocess

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record("grandchild", process.pid)
    time.sleep(600)


def talk(runtime: Runtime) -> None:
    """Write so much that a pipe would be full."""
    print("a warning of many words\n" * 10000, flush=True)
    runtime.compute()


STEP_FAULTS: dict[str, Any] = {
    "abort": lambda runtime: os.abort(),
    "kill": lambda runtime: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda runtime: os._exit(3),
    "hang": lambda runtime: time.sleep(600),
    "raise": lambda runtime: runtime.inputs["no such input"],
    "grandchild": grandchild,
    "talk": talk,
    "stale": lambda runtime: print("[ERROR] Failed to Infer: invalid dimensions", flush=True),
    "shape": lambda runtime: runtime.damage("new", lambda x: x[..., :-1]),
    "type": lambda runtime: runtime.damage("logits", lambda x: x.astype(np.float64)),
    "missing": lambda runtime: runtime.outputs.clear(),
    "nan": lambda runtime: runtime.damage("logits", lambda x: x * np.nan),
    "infinity": lambda runtime: runtime.damage("new", lambda x: x + np.inf),
}

if FAULT == "hang at import":
    time.sleep(600)
if FAULT == "fail at import":
    raise ImportError("libfastdeploy.so: cannot open shared object file")
