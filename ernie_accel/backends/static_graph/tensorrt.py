"""The backend ``tensorrt``: FastDeploy 1.x with its TensorRT, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.static_graph.engine_cache import EngineCache
from ernie_accel.backends.static_graph.fastdeploy_executor import ShapeCheck, Shapes
from ernie_accel.backends.static_graph.fastdeploy_options import TensorRTOptions
from ernie_accel.backends.static_graph.fastdeploy_runtime import FastDeployBackend, Special
from ernie_accel.backends.static_graph.runner import StaticGraphRunner
from ernie_accel.checkpoint.base import Checkpoint
from ernie_accel.errors import ArgumentError, UnsupportedError
from ernie_accel.export.signature import Signature

__all__ = ["Profile", "TensorRTBackend", "check_shapes", "engine_profile"]

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Least, best and greatest shape of each input of the graph."""


class TensorRTBackend(FastDeployBackend):
    """fp16 and fp32, and int8 with an engine that was built in it, through the TensorRT in FastDeploy."""

    name = "tensorrt"
    precisions = ("fp16", "fp32", "int8")
    runtime = "tensorrt"
    gpu = True
    options_type = TensorRTOptions

    def _graph_precision(self, precision: str) -> str:
        return "fp32"  # the engine's own is chosen when it is built

    def _settings(self, signature: Signature, options: LoadOptions) -> dict[str, Any]:
        own: TensorRTOptions = self._own(options)
        if options.threads is not None:
            raise UnsupportedError(
                f"threads={options.threads}: backend 'tensorrt' computes on a GPU; leave it out"
            )
        if signature.precision == "int8" and (own.cache_file is None or not Path(own.cache_file).exists()):
            raise UnsupportedError(
                f"precision='int8' with cache_file={own.cache_file!r}: FastDeploy 1.x runs an int8 engine but cannot "
                "build one from ONNX. Write the graph with 'ernie-accel export', build the engine with TensorRT's own "
                "'trtexec --int8 --fp16' for the shapes of the profile, and name it as cache_file; or use "
                "precision='fp16'"
            )
        return {"threads": 1, "device": _device(options.device)}

    def open(self, checkpoint: Checkpoint, options: LoadOptions) -> StaticGraphRunner:
        """As ``StaticGraphBackend.open``; the context is at most what the profile covers.

        Raises ArgumentError if a longer one is asked for.
        """
        most = self._own(options).past[2][0]
        if options.max_context is None:
            trained = checkpoint.config.max_position_embeddings
            options = replace(options, max_context=min(most, trained))
        elif options.max_context > most:
            raise ArgumentError(
                f"max_context={options.max_context}: the profile's past_length ends at {most}; raise it in "
                "backend_options=TensorRTOptions(profile=...)"
            )
        return super().open(checkpoint, options)

    def _own(self, options: LoadOptions) -> TensorRTOptions:
        own: TensorRTOptions = super()._own(options)
        return replace(own, max_step_tokens=min(own.max_step_tokens, own.ids[2][1]))

    def _special(self, graph: Path, signature: Signature, own: TensorRTOptions) -> Special:
        profile = engine_profile(signature, own)
        settings = {
            "profile": profile,
            "fp16": signature.precision != "fp32",
            "workspace": own.workspace,
            "cache_file": None,
        }
        if own.cache_file is None:
            return Special({"tensorrt": settings})
        made_of = {
            "precision": signature.precision,
            "profile": {k: [list(s) for s in v] for k, v in profile.items()},
        }
        cache = EngineCache(Path(own.cache_file), graph, made_of, foreign=signature.precision == "int8")
        return Special({"tensorrt": {**settings, "cache_file": cache.path}}, cache.keep, cache.discard)

    def _max_sequences(self, own: TensorRTOptions) -> int:
        return own.ids[2][0]

    def _shape_check(self, signature: Signature, own: TensorRTOptions) -> ShapeCheck:
        profile = engine_profile(signature, own)
        return lambda shapes: check_shapes(shapes, profile)


def engine_profile(signature: Signature, own: TensorRTOptions) -> Profile:
    """Return the ranges of all inputs, which follow from those of ``input_ids`` and ``past_length``."""
    rows = (1, min(own.ids[1][0], own.max_step_tokens), own.max_step_tokens)
    least, best, greatest = (
        _shapes(signature, *sizes) for sizes in zip(own.ids, own.past, rows, strict=True)
    )
    return {name: (least[name], best[name], greatest[name]) for name in signature.input_names}


def _shapes(
    signature: Signature, ids: Sequence[int], past: Sequence[int], rows: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input for so many sequences and ids, places of the past and rows of logits."""
    batch, width = ids
    cache = (batch, signature.kv_heads, past[0], signature.head_dim)
    return {
        "ids": (batch, width),
        "positions": (batch, width),
        "lengths": (batch,),
        "logit_rows": (rows,),
        "hidden_rows": (rows,),
        **dict.fromkeys(signature.past_names, cache),
    }


def check_shapes(shapes: Shapes, profile: Profile) -> None:
    """Refuse what is outside the profile: FastDeploy would build the engine anew, for minutes, in the middle of a step.

    Raises ArgumentError.
    """
    for name, shape in shapes.items():
        least, _, greatest = profile[name]
        if not all(a <= n <= b for a, n, b in zip(least, shape, greatest, strict=True)):
            raise ArgumentError(
                f"input {name!r} of shape {shape} is outside the profile, {least} to {greatest}; load the model with "
                "backend_options=TensorRTOptions(profile=...) that covers it"
            )


def _device(device: str | None) -> int:
    """Return the number of a GPU."""
    kind, _, number = (device or "gpu").partition(":")
    if kind not in ("gpu", "cuda") or not (number or "0").isdecimal():
        raise UnsupportedError(f"device={device!r}: backend 'tensorrt' runs on 'gpu', or 'gpu:1' and so on")
    return int(number or 0)
