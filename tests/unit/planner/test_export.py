"""Plans as settings of other systems."""

from __future__ import annotations

import json

import pytest

import ernie_accel as ea
from ernie_accel.errors import UnsupportedError


def test_fastdeploy_gets_its_arguments() -> None:
    found = ea.plan(
        "300B-A47B",
        devices="8xA800",
        precision="wint4",
        kv_precision="int8",
        tensor_parallel=4,
        data_parallel=2,
        max_batch=32,
        max_context=32768,
        utilization=0.85,
    )
    assert found.to_fastdeploy() == {
        "model": "300B-A47B",
        "max_model_len": 32768,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 8192,
        "tensor_parallel_size": 4,
        "data_parallel_size": 2,
        "gpu_memory_utilization": 0.85,
        "block_size": 64,
        "quantization": {"quantization": "wint4", "kv_cache_quant_type": "int8"},
    }
    plain = ea.plan("21B-A3B", devices="A100", mtp=True).to_fastdeploy()
    assert "quantization" not in plain
    assert plain["speculative_config"]["method"] == "mtp"


def test_experts_in_parallel_are_switched_on() -> None:
    found = ea.plan(
        "300B-A47B",
        devices="8xH800",
        precision="fp8",
        expert_parallel=True,
        tensor_parallel=1,
        data_parallel=8,
        max_batch=8,
    )
    arguments = found.to_fastdeploy()
    assert arguments["enable_expert_parallel"] is True
    assert arguments["quantization"] == "block_wise_fp8"


def test_what_fastdeploy_lacks_is_refused() -> None:
    stages = ea.plan("300B-A47B", devices="16xA100", tensor_parallel=8, pipeline_parallel=2)
    with pytest.raises(UnsupportedError, match="pipeline"):
        stages.to_fastdeploy()
    here = ea.plan("0.3B", devices="cpu", backend="reference")
    with pytest.raises(UnsupportedError, match="accelerators"):
        here.to_fastdeploy()
    with pytest.raises(UnsupportedError, match="several devices"):
        here.to_paddle()


def test_paddle_gets_its_degrees() -> None:
    found = ea.plan("300B-A47B", devices="16xA100", precision="bf16", tensor_parallel=8, pipeline_parallel=2)
    settings = found.to_paddle()
    assert settings["hybrid_configs"] == {
        "dp_degree": 1,
        "mp_degree": 8,
        "pp_degree": 2,
        "sharding_degree": 1,
        "ep_degree": 1,
    }
    assert settings["launch"][-2:] == ["--nnodes", "2"]


def test_kubernetes_gets_resources_that_hold_the_plan() -> None:
    gpus = ea.plan("300B-A47B", devices="8xA800", precision="int8", tensor_parallel=8).to_kubernetes()
    assert gpus["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert gpus["volumes"][0]["emptyDir"]["sizeLimit"] == "64Gi"
    assert gpus["startupProbe"]["failureThreshold"] * gpus["startupProbe"]["periodSeconds"] >= 600
    found = ea.plan("0.3B", devices="cpu", backend="reference", threads=None)
    here = found.to_kubernetes()
    limit = int(here["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert limit > found.required
    assert json.dumps(gpus)
    assert json.dumps(here)
