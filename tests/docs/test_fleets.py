"""What the page on fleets makes of a plan can be read by those that it is for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.test_documentation import ROOT, blocks, run

PAGE = ROOT / "docs/guides/fleets.md"


@pytest.fixture(scope="module")
def output() -> str:
    import sys

    return run([sys.executable, "-W", "error", "-"], "\n".join(blocks(PAGE, "python")))


def test_the_manifest_starts_what_was_planned(output: str) -> None:
    items: dict[str, Any] = {
        item["kind"]: item for item in json.loads(output.partition("manifest:\n")[2])["items"]
    }
    pod = items["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    arguments = json.loads(items["ConfigMap"]["data"]["fastdeploy.yaml"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(arguments["tensor_parallel_size"])
    assert arguments["quantization"] == "wint4"
    assert arguments["max_model_len"] == 32768
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    assert items["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert items["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    assert "/config/fastdeploy.yaml" in container["command"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert "exec" in container[probe]


def test_several_machines_are_named_and_cost_something(output: str) -> None:
    lines = output.partition("manifest:\n")[0].splitlines()
    assert lines[-1] == "10.0.0.1,10.0.0.2"
    assert any(line.startswith("Tensor parallel 16 ") for line in lines)
