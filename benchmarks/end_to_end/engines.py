"""The engines that can be compared, by the name that they have on the command line. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One engine in one setting.

    Attributes:
        title: As tables call it.
        module: Adapter in ``peers``.
        precision: Of the weights, as the engine calls it.
        kv: Of the KV cache, as the engine calls it; "" is the adapter's choice.
        distributions: Packages whose versions are written down.
        moe: Whether a mixture of experts runs on it here.
        resident: Ours: a quantised directory is read into large pages of memory of its own, not mapped.
        backend: Ours: what computes.
    """

    title: str
    module: str
    precision: str
    kv: str = ""
    distributions: tuple[str, ...] = ()
    moe: bool = False
    resident: bool = False
    backend: str = "native"

    @property
    def ours(self) -> bool:
        """Whether it is this library's own engine."""
        return self.module == "ours" and self.backend == "native"


def _ours(precision: str, kv: str = "", resident: bool = False) -> Entry:
    title = f"ernie_accel {precision}" + (f", KV {kv}" if kv else "") + (", resident" if resident else "")
    return Entry(title, "ours", precision, kv, ("ernie-accel", "numpy"), moe=True, resident=resident)


def _through(backend: str, precision: str, *distributions: str) -> Entry:
    """Another engine that our static graph runs on, driven through our API."""
    title = f"ernie_accel {backend} {precision}"
    return Entry(title, "ours", precision, "", ("ernie-accel", *distributions), backend=backend)


def _llama(precision: str, moe: bool = False) -> Entry:
    return Entry(f"llama.cpp {precision}", "llama", precision, "", ("llama-cpp-python",), moe)


def _openvino(precision: str) -> Entry:
    return Entry(f"OpenVINO {precision}", "openvino_cpu", precision, "", ("openvino",))


def _onnx(precision: str) -> Entry:
    packages = ("onnxruntime-genai", "onnxruntime")
    return Entry(f"onnxruntime-genai {precision}", "onnx_genai", precision, "", packages)


def _torch(precision: str) -> Entry:
    return Entry(f"transformers {precision}", "torch_cpu", precision, "", ("transformers", "torch"))


ENGINES: dict[str, Entry] = {
    "ours-int8": _ours("int8"),
    "ours-int4": _ours("int4"),
    "ours-bf16": _ours("bf16"),
    "ours-fp32": _ours("fp32"),
    "ours-int8-kv8": _ours("int8", "int8"),
    "ours-int4-kv8": _ours("int4", "int8"),
    "ours-int8-kv16": _ours("int8", "bf16"),
    "ours-int4-kv16": _ours("int4", "bf16"),
    "ours-int4-resident": _ours("int4", resident=True),
    "onnxruntime-fp32": _through("onnxruntime", "fp32", "onnxruntime"),
    "onnxruntime-int8": _through("onnxruntime", "int8", "onnxruntime"),
    "paddle-fp32": _through("paddle", "fp32", "paddlepaddle"),
    "paddle-bf16": _through("paddle", "bf16", "paddlepaddle"),
    "fastdeploy-ort": _through("fastdeploy-ort", "fp32", "numpy"),
    "fastdeploy-openvino": _through("fastdeploy-openvino", "bf16", "numpy"),
    "fastdeploy-openvino-fp32": _through("fastdeploy-openvino", "fp32", "numpy"),
    "llama-q8": _llama("Q8_0"),
    "llama-q4": _llama("Q4_0", moe=True),
    "llama-bf16": _llama("BF16"),
    "openvino-int8": _openvino("int8"),
    "openvino-int4": _openvino("int4"),
    "onnx-int8": _onnx("int8"),
    "onnx-int4": _onnx("int4"),
    "torch-bf16": _torch("bf16"),
    "torch-fp32": _torch("fp32"),
}

DEFAULT = (
    "ours-int8",
    "ours-int4",
    "ours-bf16",
    "llama-q8",
    "llama-q4",
    "llama-bf16",
    "openvino-int8",
    "openvino-int4",
    "onnx-int8",
    "onnx-int4",
    "torch-bf16",
)
"""Compared where no engines are named."""
