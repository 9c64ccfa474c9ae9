"""Plans as settings of other systems."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import ernie_accel as ea
from ernie_accel.cli.main import main
from ernie_accel.errors import ArgumentError, UnsupportedError


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


def test_a_copy_on_several_machines_needs_their_addresses() -> None:
    found = ea.plan("300B-A47B", devices="16xA800", precision="bf16", tensor_parallel=16, max_batch=4)
    assert found.to_fastdeploy(ips=["10.0.0.1", "10.0.0.2"])["ips"] == "10.0.0.1,10.0.0.2"
    for wrong in (None, ["10.0.0.1"], ["a", "b", "c"]):
        with pytest.raises(ArgumentError, match="lies on 2 machines: give the address of each"):
            found.to_fastdeploy(ips=wrong)
    with pytest.raises(ArgumentError, match="a list of them"):
        found.to_fastdeploy(ips="10.0.0.1,10.0.0.2")
    one = ea.plan("300B-A47B", devices="8xA800", precision="int4", tensor_parallel=8)
    assert "ips" not in one.to_fastdeploy()
    with pytest.raises(ArgumentError, match="lies on one machine"):
        one.to_fastdeploy(ips=["10.0.0.1"])


def test_the_command_line_takes_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "300B-A47B", "--devices", "16xA800", "--precision", "bf16", "--tensor-parallel", "16"]
    assert main([*command, "--to", "fastdeploy", "--ips", "10.0.0.1,10.0.0.2"]) == 0
    assert json.loads(capsys.readouterr().out)["ips"] == "10.0.0.1,10.0.0.2"
    assert main([*command, "--ips", "10.0.0.1,10.0.0.2"]) != 0
    assert "goes with --to fastdeploy" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (304, False), (404, False)])
def test_probes_take_dead_workers_for_what_they_are(status: int, healthy: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    found = ea.plan("300B-A47B", devices="8xA800", precision="int8", tensor_parallel=8).to_kubernetes()
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            program = found[name]["exec"]["command"][-1].replace(":8000/", f":{server.server_port}/")
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
            assert (done.returncode == 0) == healthy
        server.shutdown()


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
    small_cache = ea.plan("0.3B", devices="H100", precision="bf16", kv_precision="int8")
    with pytest.raises(UnsupportedError, match="with quantized weights only"):
        small_cache.to_fastdeploy()


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


def test_processes_of_one_machine_have_degrees_too() -> None:
    found = ea.plan("0.3B", devices="cpu", backend="paddle", tensor_parallel=2)
    settings = found.to_paddle()
    assert settings["hybrid_configs"]["mp_degree"] == 2
    assert settings["launch"][-2:] == ["--nproc_per_node", "2"]
    assert settings["flags"] == {"PADDLE_DISTRI_BACKEND": "gloo"}


def test_kubernetes_gets_resources_that_hold_the_plan() -> None:
    gpus = ea.plan("300B-A47B", devices="8xA800", precision="int8", tensor_parallel=8).to_kubernetes()
    assert gpus["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert gpus["volumes"][0]["emptyDir"]["sizeLimit"] == "64Gi"
    assert (
        int(gpus["resources"]["limits"]["memory"].removesuffix("Gi")) > 64
    )  # which counts as the container's
    assert gpus["startupProbe"]["failureThreshold"] * gpus["startupProbe"]["periodSeconds"] >= 600
    found = ea.plan("0.3B", devices="cpu", backend="reference", threads=None)
    here = found.to_kubernetes()
    limit = int(here["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert limit > found.required
    assert json.dumps(gpus)
    assert json.dumps(here)
