"""What is looked at before a start, what each finding says, and how backends and doctor show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends import registry
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy import machine, needs
from ernie_accel.backends.fastdeploy.backend import FastDeployBackend
from ernie_accel.backends.preflight import Preflight
from ernie_accel.cli.main import main
from ernie_accel.export.paddle_package import installed_version
from ernie_accel.testing import tiny_config
from tests.unit.backends.fastdeploy2.conftest import HOPPER, Installation
from tests.unit.backends.fastdeploy2.fake_server import FakeServer

Look = Callable[..., Preflight]


@pytest.fixture
def look(fastdeploy: Installation, checkpoint_directory: Path) -> Look:
    """Preflight of the tiny checkpoint; ``own`` are fields of FastDeployOptions, ``keys`` change its config.json."""

    def look(own: dict[str, Any] | None = None, **options: Any) -> Preflight:
        given = LoadOptions(backend_options=fastdeploy.own(**(own or {})), **options)
        return FastDeployBackend().preflight(checkpoint_directory, tiny_config(vocab_size=640), given)

    return look


def test_everything_is_as_it_must_be(look: Look) -> None:
    report = look({"guided_decoding": True})
    assert report.ok
    assert report.faults == ()
    assert report.sentence() == ""
    assert report["fastdeploy"].found == "fastdeploy-gpu 2.5.0."
    assert report["paddle"].found == "paddlepaddle-gpu 3.3.1."
    assert report["layout"].found == "-PT (torch_dtype), loader default_v1."
    assert {finding.name for finding in report} >= {
        *("system", "gpu", "compute capability", "driver", "shared memory", "interpreter", "quantization"),
        *("guided decoding", "main memory", "gpu memory"),
    }
    assert "yes  fastdeploy-gpu 2.5.0." in repr(report)
    assert "<td>fastdeploy-gpu 2.5.0.</td>" in report._repr_html_()
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    with pytest.raises(KeyError):
        _ = report["nothing"]


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("fastdeploy", "3.0.30", "an unrelated project that shares the name"),
        ("fastdeploy-gpu-python", "0.1.0", "a stub that the public index has instead of the GPU build"),
        ("fastdeploy-gpu-python", "1.0.7", r"FastDeploy 1\.x: it runs static graphs and has no LLM engine"),
        ("fastdeploy-python", "1.0.7", r"FastDeploy 1\.x"),
        ("fastdeploy-gpu", "2.1.0", "cannot stream offline"),
    ],
)
def test_what_is_installed_in_its_place(
    look: Look, fastdeploy: Installation, name: str, version: str, found: str
) -> None:
    import re

    fastdeploy.uninstall("fastdeploy-gpu")
    fastdeploy.install(name, version)
    finding = look()["fastdeploy"]
    assert finding.ok is False
    assert re.search(found, finding.found)
    assert "Install" in finding.next_step


def test_nothing_or_two_things_installed(look: Look, fastdeploy: Installation) -> None:
    fastdeploy.install("fastdeploy", "3.0.30")
    assert "overwrite each other's files" in look()["fastdeploy"].found
    fastdeploy.uninstall("fastdeploy")
    fastdeploy.uninstall("fastdeploy-gpu")
    assert look()["fastdeploy"].found == "FastDeploy is not installed."
    assert "Paddle's own package index" in look()["fastdeploy"].next_step


@pytest.mark.parametrize(
    ("fastdeploy_version", "paddle", "ok", "word"),
    [
        ("2.5.0", ("paddlepaddle-gpu", "3.3.0"), True, "3.3.0"),
        ("2.5.0", ("paddlepaddle-gpu", "3.2.1"), False, "compiled for Paddle 3.3"),
        ("2.3.0", ("paddlepaddle-gpu", "3.2.1"), True, "3.2.1"),
        ("2.2.0", ("paddlepaddle-gpu", "3.0.0"), False, "3.1 to 3.2"),
        ("2.9.0", ("paddlepaddle-gpu", "3.9.0"), None, "not known here"),
        ("2.5.0", ("paddlepaddle", "3.3.1"), False, "build for CPUs"),
        ("2.5.0", None, False, "build for CPUs" if installed_version() else "not installed"),
    ],
)
def test_paddle_must_be_the_one_that_belongs_to_it(
    look: Look,
    fastdeploy: Installation,
    fastdeploy_version: str,
    paddle: tuple[str, str] | None,
    ok: bool | None,
    word: str,
) -> None:
    fastdeploy.uninstall("fastdeploy-gpu")
    fastdeploy.uninstall("paddlepaddle-gpu")
    fastdeploy.install("fastdeploy-gpu", fastdeploy_version)
    if paddle is not None:
        fastdeploy.install(*paddle)
    finding = look()["paddle"]
    assert finding.ok is ok
    assert word in f"{finding.found} {finding.next_step}"


@pytest.mark.parametrize(
    ("gpus", "name", "word"),
    [
        ((), "gpu", "no CPU worker"),
        (("0, Tesla V100, 7.0, 550.54, 32768, 32000",), "compute capability", "8, 8.6, 8.9, 9"),
        (("0, NVIDIA GeForce RTX 5090, 12.0, 570.1, 32768, 32000",), "compute capability", "12"),
        (("0, NVIDIA H100, 9.0, 525.60, 81559, 81000",), "driver", "Install driver 535"),
        (("[N/A], broken",), "gpu", "nvidia-smi lists no"),
        (("0, NVIDIA A10, 8.6, 550.54, 10, 1",), "gpu memory", "Use int8 or int4"),
    ],
)
def test_gpus(look: Look, fastdeploy: Installation, gpus: tuple[str, ...], name: str, word: str) -> None:
    fastdeploy.gpus(*gpus)
    finding = look()[name]
    assert finding.ok is False
    assert word in f"{finding.found} {finding.next_step}"


OTHERS = (
    "0, NVIDIA T400, 7.5, 550.54, 2048, 10",
    "1, NVIDIA H100, 9.0, 550.54, 81559, 81000",
    "2, NVIDIA H100, 9.0, 550.54, 81559, 81000",
)


def test_only_the_gpus_that_will_be_used_are_looked_at(look: Look, fastdeploy: Installation) -> None:
    fastdeploy.gpus(*OTHERS)
    assert [fault.name for fault in look().faults] == ["compute capability", "gpu memory"]
    assert "device='gpu:1'" in look()["compute capability"].next_step
    assert look(device="gpu:1").ok
    assert look(device="gpu:1,2", tensor_parallel=2).ok
    assert [fault.name for fault in look(device="gpu:1,3", tensor_parallel=2).faults] == ["gpu"]
    assert "There is no GPU 3" in look(device="gpu:3")["gpu"].next_step


def test_visible_gpus_are_those_of_the_environment(
    look: Look, fastdeploy: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastdeploy.gpus(*OTHERS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert look().ok
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8d1f0c7e")
    assert not look().ok


def test_a_context_that_would_fit_is_named(look: Look, fastdeploy: Installation) -> None:
    config = tiny_config(vocab_size=640, max_position_embeddings=1 << 20)
    weights = 1 << 20
    fastdeploy.gpus("0, NVIDIA A10, 8.6, 550.54, 64, 64")
    given = LoadOptions(backend_options=fastdeploy.own())
    (directory := fastdeploy.logs / "model").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    (directory / "model.safetensors").write_bytes(bytes(weights))
    finding = FastDeployBackend().preflight(directory, config, given)["gpu memory"]
    assert finding.ok is False
    each = 2 * 2 * config.head_dim * config.num_key_value_heads * config.num_hidden_layers
    assert f"max_context={(int((64 << 20) * 0.9) - weights) // each} or less" in finding.next_step


def test_too_few_gpus_and_a_number_of_heads(look: Look) -> None:
    assert "2 are needed" in look(tensor_parallel=2)["gpu"].next_step
    with pytest.raises(ea.ArgumentError, match=r"device='gpu:0': names 1 GPUs, .* needs 2"):
        look(tensor_parallel=2, device="gpu:0")
    assert "must divide the 4 attention heads" in look(tensor_parallel=3)["settings"].found
    assert "has no experts" in look({"expert_parallel": True, "data_parallel": 1})["settings"].found


@pytest.mark.parametrize(
    ("keys", "own", "options", "name", "word"),
    [
        ({"dtype": "bfloat16"}, {}, {}, "layout", "both torch_dtype and dtype"),
        ({"torch_dtype": None}, {}, {}, "layout", "neither torch_dtype nor dtype"),
        ({}, {"loader": "default"}, {}, "layout", "reads -Paddle alone"),
        ({}, {"quantization": "wint2"}, {}, "quantization", "needs a checkpoint that was made so"),
        (
            {"quantization_config": {"bits": 2}},
            {},
            {"precision": "int8"},
            "quantization",
            "quantized already",
        ),
    ],
)
def test_checkpoints(
    fastdeploy: Installation,
    checkpoint_directory: Path,
    tmp_path: Path,
    keys: dict[str, Any],
    own: dict[str, Any],
    options: dict[str, Any],
    name: str,
    word: str,
) -> None:
    held = json.loads((checkpoint_directory / "config.json").read_text())
    changed = {key: value for key, value in {**held, **keys}.items() if value is not None}
    (directory := tmp_path / "model").mkdir()
    (directory / "config.json").write_text(json.dumps(changed))
    (directory / "model.safetensors").write_bytes(b"weights")
    given = LoadOptions(backend_options=fastdeploy.own(**own), **options)
    finding = FastDeployBackend().preflight(directory, tiny_config(vocab_size=640), given)[name]
    assert finding.ok is False
    assert word in finding.found
    assert finding.next_step


def test_weights_must_be_there_unless_they_are_invented(fastdeploy: Installation, tmp_path: Path) -> None:
    config = tiny_config(torch_dtype="bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    backend = FastDeployBackend()
    missing = backend.preflight(tmp_path, config, LoadOptions(backend_options=fastdeploy.own()))
    assert missing["weights"].ok is False
    dummy = backend.preflight(tmp_path, config, LoadOptions(backend_options=fastdeploy.own(loader="dummy")))
    assert dummy.ok


def test_fp8_needs_its_hardware(look: Look, fastdeploy: Installation) -> None:
    assert look(precision="fp8")["quantization"].found == "block_wise_fp8."
    fastdeploy.gpus("0, NVIDIA A100, 8.0, 550.54, 81920, 81000")
    assert "needs compute capability 8.9 or 9.0" in look(precision="fp8")["quantization"].found


def test_ports_that_are_taken(look: Look) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = look({"engine_arguments": {"engine_worker_queue_port": port}})["engine_worker_queue_port"]
        assert finding.ok is False
        assert finding.found == f"{port} is taken."
    assert look({"engine_arguments": {"engine_worker_queue_port": port}})["engine_worker_queue_port"].ok


def test_ports_that_early_versions_take_by_themselves(
    look: Look, fastdeploy: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "port_is_free", lambda port: port != 8003)
    assert "cache_queue_port" not in {finding.name for finding in look()}
    fastdeploy.uninstall("fastdeploy-gpu")
    fastdeploy.install("fastdeploy-gpu", "2.2.1")
    report = look()
    assert report["engine_worker_queue_port"].ok is True
    assert (
        report["cache_queue_port"].found
        == "8003 is taken. fastdeploy-gpu 2.2.1 takes it unless told otherwise."
    )
    assert "engine_arguments={'cache_queue_port'" in report["cache_queue_port"].next_step
    assert look({"engine_arguments": {"cache_queue_port": 9003}})["cache_queue_port"].ok is True


def test_what_early_versions_lack_beside_log_probabilities(look: Look, fastdeploy: Installation) -> None:
    lookup = ea.EngineOptions(speculation="lookup")
    assert look({"logprobs": True}, engine=lookup).ok
    fastdeploy.uninstall("fastdeploy-gpu")
    fastdeploy.install("fastdeploy-gpu", "2.2.1")
    names = {finding.name for finding in look({"logprobs": True})}
    assert "log-probabilities" not in names
    finding = look({"logprobs": True}, engine=lookup)["log-probabilities"]
    assert finding.ok is False
    assert "none together with speculation" in finding.found
    spread = look({"logprobs": True, "expert_parallel": True})["log-probabilities"]
    assert "none together with expert_parallel" in spread.found


def test_little_shared_memory_and_another_system(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "shared_memory", lambda: 64 << 20)
    monkeypatch.setattr(machine, "is_linux_x86", lambda: False)
    report = look()
    assert "--shm-size" in report["shared memory"].next_step
    assert "Linux on x86-64" in report["system"].found
    monkeypatch.setattr(machine, "shared_memory", lambda: None)
    assert look()["shared memory"].ok is None


def test_guided_decoding_needs_xgrammar(look: Look, fastdeploy: Installation) -> None:
    fastdeploy.uninstall("xgrammar")
    assert look({"guided_decoding": True})["guided decoding"].ok is False
    with pytest.raises(KeyError):
        _ = look()["guided decoding"]


def test_an_interpreter_that_does_not_start(look: Look) -> None:
    finding = look({"python": "/no/such/python"})["interpreter"]
    assert finding.ok is False
    assert "/no/such/python does not answer: FileNotFoundError" in finding.found


def test_a_python_that_has_no_wheels() -> None:
    (first, *_) = needs.package_findings(machine.Packages(python=(3, 13, 1), versions={}), guided=False)
    assert first.ok is False
    assert "3.10 to 3.12" in first.next_step


def test_a_start_that_cannot_work_is_refused_before_it_begins(
    fastdeploy: Installation, checkpoint_directory: Path
) -> None:
    fastdeploy.gpus()
    own = fastdeploy.own()
    with pytest.raises(
        ea.BackendUnavailableError, match=r"cannot run here: gpu: nvidia-smi lists no NVIDIA GPU"
    ):
        ea.Model.load(checkpoint_directory, backend="fastdeploy", backend_options=own)
    fastdeploy.gpus(HOPPER)
    fastdeploy.uninstall("paddlepaddle-gpu")
    with pytest.raises(
        ea.BackendUnavailableError, match=r"paddle: Paddle is not|paddle: paddlepaddle .* for CPUs"
    ):
        ea.Model.load(checkpoint_directory, backend="fastdeploy", backend_options=own)
    fastdeploy.install("paddlepaddle-gpu", "3.3.1")
    fastdeploy.gpus("0, NVIDIA A10, 8.6, 550.54, 10, 1")
    with pytest.raises(ea.BackendUnavailableError, match=r"FastDeploy cannot start here\. gpu memory"):
        ea.Model.load(checkpoint_directory, backend="fastdeploy", backend_options=own)
    assert fastdeploy.notes("llm") == []


def test_the_table_of_backends_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    row = ea.backends()["fastdeploy"]
    assert row.ok
    assert "Talks to a server" in row.reason
    assert "no NVIDIA GPU" in row.reason
    assert row.next_step
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    row = ea.backends()["fastdeploy"]
    assert not row.ok
    assert "pip install 'ernie-accel[remote]'" in row.next_step


def test_doctor_shows_it(
    checkpoint_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert main(["doctor", str(checkpoint_directory), "--backend", "fastdeploy", "--precision", "int8"]) == 1
    shown = capsys.readouterr().out
    assert "before fastdeploy" in shown
    assert "nvidia-smi lists no NVIDIA GPU" in shown
    assert "wint8." in shown
    assert main(["doctor", "--json"]) == 0
    looked = json.loads(capsys.readouterr().out)["preflights"]
    assert [preflight["backend"] for preflight in looked] == ["fastdeploy"]
    assert main(["doctor", "--backend", "reference"]) == 0
    with pytest.raises(ea.ArgumentError, match="backend='refrence'"):
        ea.doctor(backend="refrence")


def test_doctor_looks_with_the_options_given(
    fastdeploy: Installation, checkpoint_directory: Path, server: FakeServer
) -> None:
    report = ea.doctor(checkpoint_directory, backend_options=fastdeploy.own())
    (looked,) = report.preflights
    assert looked.ok
    nobody = ea.FastDeployOptions(endpoint="http://localhost:1", retries=0)
    (looked,) = ea.doctor(backend_options=nobody).preflights
    assert [(finding.name, finding.ok) for finding in looked] == [("http", True), ("server", False)]
    assert "is not ready" in looked["server"].found
    own = ea.FastDeployOptions(endpoint=server.url)
    (looked,) = ea.doctor(backend_options=own).preflights
    assert looked["server"].found == f"{server.url} is ready and has the model 'ernie'."
    assert ea.doctor(backend_options=ea.NativeOptions()).preflights == ()


def test_auto_follows_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.pick("auto").reason == "auto: it is the fastest on a CPU."
    assert registry.pick("auto", LoadOptions(device="cpu")).backend.name == "native"
    own = LoadOptions(backend_options=ea.FastDeployOptions(endpoint="http://localhost:1"))
    assert registry.pick("auto", own).reason == "auto: FastDeployOptions belong to 'fastdeploy'."
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with pytest.raises(ea.BackendUnavailableError, match=r'"auto" found none. fastdeploy: .*no NVIDIA GPU'):
        registry.pick("auto", LoadOptions(device="gpu"))


def test_auto_takes_a_gpu_backend_where_it_can_run(
    fastdeploy: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine.packages(None, {"PYTHONPATH": str(fastdeploy.site)})
    monkeypatch.setattr(machine, "packages", lambda python, environment: found)
    choice = registry.pick("auto", LoadOptions(device="cuda:0"))
    assert choice.backend.name == "fastdeploy"
    assert choice.reason.startswith("auto: it is the first that can run here of those for a GPU.")


def test_another_interpreter_does_not_get_what_means_ours(
    fastdeploy: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setenv("PYTHONPATH", str(fastdeploy.site))
    assert machine.packages(sys.executable, {}).fastdeploy[0].name == "fastdeploy-gpu"
    other = fastdeploy.bin / "python"
    other.symlink_to(sys.executable)
    assert machine.packages(str(other), {}).fastdeploy == ()
    given = machine.packages(str(other), {"PYTHONPATH": str(fastdeploy.site)})
    assert given.fastdeploy[0].name == "fastdeploy-gpu"
