"""A plan as the settings of other systems: FastDeploy 2.x, paddle.distributed, Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ernie_accel.backends.accelerator import BLOCK_TOKENS, MAX_SEQUENCES
from ernie_accel.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from ernie_accel.planner.plan import MemoryPlan

__all__ = ["fastdeploy_arguments", "kubernetes_container", "paddle_settings"]

_QUANTIZATION = {
    "int8": "wint8",
    "int4": "wint4",
    "fp8": "block_wise_fp8",
    "int2": "wint2",
    "w4a8": "w4a8",
}
_SHARED_MEMORY = 64
"""GiB of /dev/shm that FastDeploy's own containers run with; what is used of it counts as memory of the container."""

_GRACE = 120
_PORT = 8000


def fastdeploy_arguments(plan: MemoryPlan, ips: Sequence[str] | None = None) -> dict[str, Any]:
    """Return engine arguments; see ``MemoryPlan.to_fastdeploy``."""
    setting, degrees = plan.setting, plan.degrees
    if isinstance(ips, str):
        raise ArgumentError(f"ips={ips!r}: must be several addresses, a list of them")
    if setting.on_cpu:
        raise UnsupportedError("FastDeploy 2.x runs on accelerators only: plan for devices such as 'H100'")
    if degrees.pipeline > 1:
        raise UnsupportedError(
            f"FastDeploy 2.x has no pipeline parallelism, the plan has {degrees.pipeline} stages"
        )
    sequences = min(setting.sequences_of_copy, MAX_SEQUENCES)
    arguments: dict[str, Any] = {
        "model": plan.model,
        "max_model_len": plan.context,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(plan.step_tokens, sequences),
        "tensor_parallel_size": degrees.tensor,
        "gpu_memory_utilization": setting.utilization,
        "block_size": BLOCK_TOKENS,
    }
    machines = -(-degrees.tensor // setting.devices.device.per_node)
    if len(ips or ()) != (machines if machines > 1 else 0):
        raise ArgumentError(_addresses(ips, degrees.tensor, machines))
    if ips:
        arguments["ips"] = ",".join(ips)
    if degrees.data > 1:
        arguments["data_parallel_size"] = degrees.data
    if degrees.expert > 1:
        arguments["enable_expert_parallel"] = True
    if plan.precision in _QUANTIZATION:
        arguments["quantization"] = _quantization(plan)
    elif plan.kv_precision not in ("bf16", "fp16"):
        raise UnsupportedError(
            f"kv_precision={plan.kv_precision!r} with weights in {plan.precision}: FastDeploy 2.x has it with "
            "quantized weights only; plan for precision='int8', say, or for kv_precision='bf16'"
        )
    if plan.mtp:
        arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": 1, "model": plan.model}
    return arguments


def _addresses(ips: Sequence[str] | None, tensor: int, machines: int) -> str:
    if machines == 1:
        return f"ips={ips!r}: tensor parallel {tensor} lies on one machine; leave them out"
    return (
        f"ips={ips!r}: tensor parallel {tensor} lies on {machines} machines: give the address of each, the one that "
        "serves first (--ips on the command line)"
    )


def _quantization(plan: MemoryPlan) -> str | dict[str, str]:
    name = _QUANTIZATION[plan.precision]
    if plan.kv_precision == "int8" and plan.precision != "w4a8":  # which has it anyway
        return {"quantization": name, "kv_cache_quant_type": "int8"}
    return name


def paddle_settings(plan: MemoryPlan) -> dict[str, Any]:
    """Return degrees and start command; see ``MemoryPlan.to_paddle``."""
    setting, degrees = plan.setting, plan.degrees
    if setting.on_cpu and degrees.devices == 1:
        raise UnsupportedError(
            "degrees of paddle.distributed are for several devices or processes: plan for '4xA100', say, or for a cpu "
            "with backend='paddle' and tensor_parallel=2"
        )
    launch = ["python", "-m", "paddle.distributed.launch"]
    flags: dict[str, Any] = {}
    if setting.on_cpu:  # processes of one machine, which exchange through gloo
        launch += ["--nproc_per_node", str(degrees.devices)]
        flags["PADDLE_DISTRI_BACKEND"] = "gloo"
    else:
        per_node = setting.devices.device.per_node
        launch += ["--gpus", ",".join(map(str, range(min(degrees.devices, per_node))))]
        flags["FLAGS_fraction_of_gpu_memory_to_use"] = setting.utilization
        if degrees.devices > per_node:
            launch += ["--nnodes", str(-(-degrees.devices // per_node))]
    return {
        # fleet.DistributedStrategy().hybrid_configs = ...
        "hybrid_configs": {
            "dp_degree": degrees.data,
            "mp_degree": degrees.tensor,
            "pp_degree": degrees.pipeline,
            "sharding_degree": 1,
            "ep_degree": degrees.expert,
        },
        "launch": launch,
        "flags": flags,
    }


def kubernetes_container(plan: MemoryPlan) -> dict[str, Any]:
    """Return a container's part of a pod specification; see ``MemoryPlan.to_kubernetes``."""
    if plan.setting.on_cpu:
        return _cpu_container(plan)
    per_node = plan.setting.devices.device.per_node
    gpus = min(plan.degrees.devices, per_node)
    weights = sum(plan.total().get(name, 0) for name in plan.parameters)
    # The loader that streams takes a share of the checkpoint; a quarter is room for its buffers and for pages of files.
    host = f"{-(-weights // 4 // 2**30) + 16 + _SHARED_MEMORY}Gi"
    return {
        "resources": {
            "limits": {"nvidia.com/gpu": str(gpus), "memory": host},
            "requests": {"nvidia.com/gpu": str(gpus), "memory": host, "cpu": str(4 * gpus)},
        },
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHARED_MEMORY}Gi"}}],
        "replicas": 1,
        "nodes": -(-plan.degrees.devices // per_node),
        "startupProbe": {**_health(10), "failureThreshold": 180},  # minutes of loading are no failure
        "readinessProbe": _health(10),
        "livenessProbe": _health(20),
        "terminationGracePeriodSeconds": _GRACE,
    }


def _health(period: int) -> dict[str, Any]:
    """A probe that takes 200 alone for health: with dead workers FastDeploy answers 304, which an httpGet accepts."""
    ask = f"from urllib.request import urlopen; urlopen('http://127.0.0.1:{_PORT}/health', timeout=5)"
    return {
        "exec": {"command": ["python", "-c", ask]},
        "periodSeconds": period,
        "timeoutSeconds": 10,
        "failureThreshold": 3,
    }


def _cpu_container(plan: MemoryPlan) -> dict[str, Any]:
    """Memory of the process at its full load, a tenth more, and the file pages that make mapped weights fast."""
    peak = max(plan.required, (plan.loading or 0) + plan.mapped)
    memory = f"{-(-(peak + peak // 10) // 2**20)}Mi"
    threads = plan.setting.options.threads
    cpu = {"cpu": str(threads)} if threads else {}
    return {
        "resources": {"limits": {"memory": memory, **cpu}, "requests": {"memory": memory, **cpu}},
        "replicas": 1,
        "nodes": 1,
        "terminationGracePeriodSeconds": _GRACE,
    }
