"""What FastDeploy needs, finding by finding: the machine, its packages, the checkpoint, memory, the server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ernie_accel import system
from ernie_accel.architecture.config import ModelConfig
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy import launch, machine
from ernie_accel.backends.fastdeploy.machine import Gpu, Packages
from ernie_accel.backends.fastdeploy.names import OFFLINE, QUANTIZATION
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.backends.fastdeploy_packages import explain
from ernie_accel.backends.preflight import Finding
from ernie_accel.display import size
from ernie_accel.errors import ErnieAccelError

__all__ = [
    "INSTALL",
    "checkpoint_findings",
    "machine_findings",
    "package_findings",
    "stored_quantization",
    "version_findings",
]

INSTALL = (
    "Install FastDeploy 2.x and the Paddle that belongs to it from Paddle's own package index, as FastDeploy's "
    "installation page says, best in an environment of their own, and name its interpreter: "
    "FastDeployOptions(python=...); or start a server there and give FastDeployOptions(endpoint=...)."
)
OTHER_MACHINE = (
    "Use backend 'native' here, or FastDeployOptions(endpoint=...) with a server on a machine that has one."
)

PAIRS: tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], ...] = (
    ((2, 0), (3, 1), (3, 2)),
    ((2, 1), (3, 1), (3, 2)),
    ((2, 2), (3, 1), (3, 2)),
    ((2, 3), (3, 2), (3, 2)),
    ((2, 5), (3, 3), (3, 3)),
)
"""FastDeploy's version, and the lowest and highest of the Paddle that its operators were compiled for."""

CAPABILITIES = (80, 86, 89, 90)
"""Compute capabilities, times ten, of the published wheels."""
FP8_CAPABILITIES = (89, 90)
LOWEST_DRIVER = 535
LEAST_SHARED = 1 << 30
CHOOSES_PORTS = (2, 3)
"""From here on FastDeploy finds free ports by itself, and has log-probabilities beside speculation and experts."""
FIXED_PORTS = {"engine_worker_queue_port": 8002, "cache_queue_port": 8003}
"""Those of earlier ones."""
LOWEST_VERSION = (2, 2)
"""Earlier ones cannot stream offline."""
BITS = {None: 16, "wint8": 8, "block_wise_fp8": 8, "wint4": 4, "wint2": 2, "w4a8": 4}


def package_findings(found: Packages, *, guided: bool) -> Iterator[Finding]:
    """Interpreter, FastDeploy, the Paddle beside it, and the grammar engine."""
    if found.problem:
        yield Finding("interpreter", False, found.problem, "Correct FastDeployOptions(python=...).")
        return
    python = ".".join(map(str, found.python))
    fits = (3, 10) <= found.python[:2] <= (3, 12)
    advice = (
        "" if fits else "FastDeploy's wheels are for Python 3.10 to 3.12: give FastDeployOptions(python=...)."
    )
    yield Finding("interpreter", fits, f"Python {python}.", advice)
    problem = explain(found.fastdeploy, "engine")
    if problem:
        yield Finding("fastdeploy", False, problem, INSTALL)
        return
    package = found.fastdeploy[0]
    version = _version(package.version)
    if version < LOWEST_VERSION:
        yield Finding("fastdeploy", False, f"{package}; it cannot stream offline.", "Install 2.2 or newer.")
    else:
        yield Finding("fastdeploy", True, f"{package}.")
    yield _pairing(version, found.paddle)
    if guided:
        there = found.versions.get("xgrammar") is not None
        yield Finding(
            "guided decoding",
            there,
            "xgrammar is installed."
            if there
            else "guided_decoding=True needs xgrammar, which is not installed.",
            "" if there else "Install xgrammar beside FastDeploy.",
        )


def _pairing(fastdeploy: tuple[int, ...], paddle: tuple[str, str] | None) -> Finding:
    if paddle is None:
        return Finding("paddle", False, "Paddle is not installed beside FastDeploy.", INSTALL)
    name, number = paddle
    if name == "paddlepaddle":
        return Finding("paddle", False, f"paddlepaddle {number} is the build for CPUs.", INSTALL)
    pair = next(((low, high) for ours, low, high in PAIRS if ours == fastdeploy[:2]), None)
    if pair is None:
        return Finding(
            "paddle", None, f"{name} {number}; which one this FastDeploy belongs to is not known here."
        )
    low, high = pair
    wanted = ".".join(map(str, low)) + ("" if low == high else f" to {'.'.join(map(str, high))}")
    ok = low <= _version(number)[:2] <= high
    advice = (
        "" if ok else f"Its operators are compiled for Paddle {wanted}: install that from Paddle's own index."
    )
    return Finding("paddle", ok, f"{name} {number}.", advice)


def machine_findings(
    found: Sequence[Gpu], needed: int, named: Sequence[int] | None = None
) -> Iterator[Finding]:
    """System, GPUs, driver and shared memory; ``named``: numbers of the GPUs to use, None for the first."""
    linux = machine.is_linux_x86()
    yield Finding(
        "system",
        linux,
        "Linux on x86-64." if linux else "FastDeploy's GPU wheels are for Linux on x86-64.",
        "" if linux else OTHER_MACHINE,
    )
    if not found:
        yield Finding(
            "gpu",
            False,
            "nvidia-smi lists no NVIDIA GPU, and FastDeploy 2.x has no CPU worker.",
            OTHER_MACHINE,
        )
        return
    names = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in found)
    missing = sorted(set(named or ()) - {gpu.index for gpu in found})
    advice = f"{needed} are needed: lower tensor_parallel or data_parallel." if len(found) < needed else ""
    if missing:
        advice = f"There is no GPU {', '.join(map(str, missing))}: correct device or CUDA_VISIBLE_DEVICES."
    yield Finding("gpu", not advice, f"{names}.", advice)
    found = machine.used(found, needed, named)
    if not found:
        return
    other = [gpu for gpu in found if gpu.capability not in CAPABILITIES]
    yield Finding(
        "compute capability",
        not other,
        f"{', '.join(sorted({f'{gpu.capability / 10:g}' for gpu in found}))}.",
        f"The wheels are for {', '.join(f'{c / 10:g}' for c in CAPABILITIES)}; others need a build from source. "
        "device='gpu:1' and so on chooses another GPU."
        if other
        else "",
    )
    old = [gpu.driver for gpu in found if _version(gpu.driver)[:1] < (LOWEST_DRIVER,)]
    yield Finding(
        "driver", not old, f"{found[0].driver}.", f"Install driver {LOWEST_DRIVER} or newer." if old else ""
    )
    shared = machine.shared_memory()
    low = shared is not None and shared < LEAST_SHARED
    yield Finding(
        "shared memory",
        None if shared is None else not low,
        "There is no /dev/shm." if shared is None else f"{size(shared)} free in /dev/shm.",
        "Give the container more: docker run --shm-size, or an emptyDir of medium Memory." if low else "",
    )


def version_findings(found: Packages, options: LoadOptions, own: FastDeployOptions) -> Iterator[Finding]:
    """What depends on FastDeploy's version: ports that it takes, and what excludes what."""
    packages = found.fastdeploy
    version = _version(packages[0].version) if packages else CHOOSES_PORTS
    given = {name: value for name, value in own.engine_arguments.items() if name.endswith(("port", "ports"))}
    fixed = FIXED_PORTS if version < CHOOSES_PORTS else {}
    for name, value in {**fixed, **given}.items():
        yield from _ports(
            name, value, "" if name in given else f" {packages[0]} takes it unless told otherwise."
        )
    quoting = options.engine is not None and options.engine.speculation != "off"
    if own.logprobs and version < CHOOSES_PORTS and (quoting or own.expert_parallel):
        what = "speculation" if quoting else "expert_parallel"
        advice = f"Leave {what} or logprobs out, or install a newer one."
        yield Finding("log-probabilities", False, f"{packages[0]} has none together with {what}.", advice)


def _ports(name: str, value: object, why: str) -> Iterator[Finding]:
    numbers = [int(part) for part in re.findall(r"\d+", str(value))]
    taken = [number for number in numbers if 0 < number < 65536 and not machine.port_is_free(number)]
    if numbers:
        yield Finding(
            name,
            not taken,
            f"{', '.join(map(str, taken))} is taken.{why}"
            if taken
            else f"{', '.join(map(str, numbers))}: free.",
            f"Choose another: FastDeployOptions(engine_arguments={{{name!r}: ...}})." if taken else "",
        )


def checkpoint_findings(
    directory: Path, config: ModelConfig, options: LoadOptions, own: FastDeployOptions, found: Sequence[Gpu]
) -> Iterator[Finding]:
    """Files and dialect, quantization, settings, memory."""
    try:
        arguments = launch.engine_arguments(directory, config, options, own)
    except ErnieAccelError as error:
        yield Finding("settings", False, f"{error}.")
        return
    keys = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    yield _dialect(keys, own)
    yield _quantization(keys, arguments.get("quantization"), found)
    weights = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    if not weights and own.loader != "dummy":
        yield Finding(
            "weights", False, f"There are no .safetensors files in {directory}.", "Give the whole checkpoint."
        )
        return
    yield _host_memory(weights, own)
    if found:
        yield _device_memory(weights, config, arguments, found)


def _dialect(keys: dict[str, Any], own: FastDeployOptions) -> Finding:
    torch, paddle = "torch_dtype" in keys, "dtype" in keys
    if torch == paddle:
        both = "both torch_dtype and dtype" if torch else "neither torch_dtype nor dtype"
        return Finding(
            "layout",
            False,
            f"config.json has {both}, and FastDeploy tells layouts apart by them.",
            "Leave torch_dtype in a -PT checkpoint, dtype in a -Paddle one.",
        )
    if torch and own.loader == "default":
        return Finding(
            "layout",
            False,
            "-PT (torch_dtype): the loader 'default' reads -Paddle alone.",
            "Use loader='auto'.",
        )
    if torch and own.expert_parallel:
        return Finding(
            "layout",
            False,
            "-PT (torch_dtype): needs the loader default_v1, which knows no expert parallelism.",
            "Give the -Paddle twin.",
        )
    return Finding("layout", True, "-PT (torch_dtype), loader default_v1." if torch else "-Paddle (dtype).")


def _quantization(keys: dict[str, Any], wanted: object, found: Sequence[Gpu]) -> Finding:
    held = _stored(keys)
    if held and wanted is not None:
        return Finding(
            "quantization",
            False,
            f"The checkpoint is quantized already ({held}), which overrides {wanted!r}.",
            "Leave precision and quantization out.",
        )
    if held:
        return Finding("quantization", True, f"As the checkpoint has it: {held}.")
    if wanted in OFFLINE:
        return Finding(
            "quantization",
            False,
            f"{wanted!r} needs a checkpoint that was made so, and this one is not quantized.",
            "Give that checkpoint, or use precision='int4'.",
        )
    if wanted == QUANTIZATION["fp8"] and any(gpu.capability not in FP8_CAPABILITIES for gpu in found):
        return Finding(
            "quantization", False, f"{wanted!r} needs compute capability 8.9 or 9.0.", "Use precision='int8'."
        )
    return Finding("quantization", True, f"{wanted}." if wanted else "None: bf16.")


def _host_memory(weights: int, own: FastDeployOptions) -> Finding:
    free = system.available_memory()
    if own.loader != "default":
        return Finding("main memory", True, f"{size(free)} free; weights are streamed.")
    ok = free >= weights
    return Finding(
        "main memory",
        ok,
        f"{size(free)} free; the loader 'default' holds all {size(weights)}.",
        "" if ok else "Use loader='auto'.",
    )


def _device_memory(
    weights: int, config: ModelConfig, arguments: dict[str, Any], found: Sequence[Gpu]
) -> Finding:
    """Weights of one GPU, and the KV cache of one sequence of full length beside them."""
    degree, context = arguments["tensor_parallel_size"], arguments["max_model_len"]
    bits = BITS.get(arguments.get("quantization"), 16)
    each = (
        weights
        * bits
        // 16
        // (degree * (arguments["data_parallel_size"] if arguments["enable_expert_parallel"] else 1))
    )
    cache = context * launch.kv_bytes_per_token(config, degree)
    smallest = min(found, key=lambda gpu: gpu.total)
    budget = int(smallest.total * arguments["gpu_memory_utilization"]) - (smallest.total - smallest.free)
    ok = each + cache <= budget
    room = max(0, budget - each) // launch.kv_bytes_per_token(config, degree)
    return Finding(
        "gpu memory",
        ok,
        f"About {size(each)} of weights and {size(cache)} of KV cache for one text of {context} tokens, of "
        f"{size(max(0, budget))} on each GPU (working memory not counted).",
        ""
        if ok
        else f"Use max_context={room} or less, int8 or int4, or more GPUs (tensor_parallel)."
        if room >= 16
        else "Use int8 or int4, or more GPUs (tensor_parallel).",
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def stored_quantization(directory: Path) -> str | None:
    """Say how the weights of a directory were quantized by whoever wrote them; None if they were not."""
    return _stored(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def _stored(keys: dict[str, Any]) -> str | None:
    held = keys.get("quantization_config")
    if not held:
        return None
    words = (
        (held.get(name) for name in ("quantization", "quant_method")) if isinstance(held, dict) else [held]
    )
    return next((str(word) for word in words if word), "quantized")
