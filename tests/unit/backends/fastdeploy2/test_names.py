"""Options that check themselves, and names that are translated or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy import launch
from ernie_accel.backends.fastdeploy.backend import FastDeployBackend
from ernie_accel.backends.fastdeploy.fields import sampling
from ernie_accel.backends.fastdeploy.names import ENGINE_ARGUMENTS, QUANTIZATION, SAMPLING
from ernie_accel.testing import tiny_config

PAGE = Path(__file__).parents[4] / "docs/reference/backends.md"
HERE = Path("/model")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"endpoint": "localhost:8188"}, "must be a URL"),
        ({"endpoint": "ftp://host"}, "must be a URL"),
        ({"endpoint": "http://me:secret@host"}, "give api_key instead"),
        ({"endpoint": "http://h", "dialect": "grpc"}, "one of fastdeploy, openai"),
        ({"endpoint": "http://h", "retries": -1}, "at least 0"),
        ({"endpoint": "http://h", "read_timeout": 0}, "seconds above 0"),
        (
            {"endpoint": "http://h", "expert_parallel": True},
            "expert_parallel: say how a process group of ours",
        ),
        ({"api_key": "k", "model": "m"}, "model, api_key: belong to a server"),
        ({"connect_timeout": 1.0}, "connect_timeout: belong to a server"),
        ({"endpoint": "http://h", "api_key": b"secret"}, "api_key: must be a string"),
        ({"python": 3}, "python=3: must be a string"),
        ({"environment": {"A": 1}}, "must map names to strings"),
        ({"engine_arguments": {"a": {1}}}, "what JSON can say"),
        ({"engine_arguments": 3}, "what JSON can say"),
        ({"memory_utilization": 1.5}, "above 0 and at most 1"),
        ({"loader": "fast"}, "one of auto"),
        ({"guided_decoding": 1}, "True or False"),
        ({"logprobs": 5}, "True or False"),
        ({"data_parallel": 0}, "at least 1"),
        ({"host_cache": 0}, "at least 1"),
    ],
)
def test_options_check_themselves(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ea.ArgumentError, match=message) as caught:
        ea.FastDeployOptions(**wrong)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "own", "message"),
    [
        ({"threads": 4}, {}, "threads=4.*leave it out"),
        ({"kv_precision": "int8"}, {}, "kv_precision='int8'.*'native'"),
        ({"device": "cpu"}, {}, "runs on GPUs alone"),
        ({"device": "gpu:a"}, {}, "such as 'gpu'"),
        ({"max_batch": 300}, {}, "at most 256"),
        (
            {},
            {"logprobs": True, "engine_arguments": {"logprobs_mode": "raw_logits"}},
            "must be 'raw_logprobs'",
        ),
        (
            {},
            {"engine_arguments": {"enable_logprob": True}},
            "enable_logprob is FastDeployOptions.logprobs here",
        ),
        ({"max_context": 8}, {}, "from 16 to"),
        ({"max_context": 1 << 30}, {}, "what the model was trained for"),
        ({"memory_limit": 1}, {}, "one block of KV cache takes"),
        ({"precision": "int8"}, {"quantization": "wint2"}, "give one of them"),
        ({"tensor_parallel": 2}, {"expert_parallel": True, "data_parallel": 2}, "of one GPU each"),
        ({}, {"engine_arguments": {"max_num_seqs": 3}}, "max_num_seqs is max_batch here"),
        ({"engine": ea.EngineOptions(latency_target=0.1)}, {}, "latency_target=0.1.*'native' has"),
        ({"engine": ea.EngineOptions(step_tokens=8)}, {}, "at least max_batch, 32"),
        (
            {"engine": ea.EngineOptions(speculation="lookup")},
            {"guided_decoding": True},
            "exclude one another",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(options: dict[str, Any], own: dict[str, Any], message: str) -> None:
    given = LoadOptions(**options)
    with pytest.raises((ea.ArgumentError, ea.UnsupportedError), match=message):
        launch.engine_arguments(HERE, tiny_config(moe=True), given, ea.FastDeployOptions(**own))


@pytest.mark.parametrize(("ours", "theirs"), QUANTIZATION.items())
def test_precisions(ours: Any, theirs: str | None) -> None:
    given = LoadOptions(precision=ours)
    found = launch.engine_arguments(HERE, tiny_config(), given, ea.FastDeployOptions())
    assert found.get("quantization") == theirs
    assert "quantization" not in launch.engine_arguments(
        HERE, tiny_config(), LoadOptions(), ea.FastDeployOptions()
    )


def test_a_precision_that_it_lacks_names_who_has_it(checkpoint_directory: Path) -> None:
    own = ea.FastDeployOptions(endpoint="http://localhost:1")
    with pytest.raises(
        ea.UnsupportedError, match=r"'fastdeploy' has bf16, fp8, int8, int4; it is offered by .*native"
    ):
        ea.Model.load(checkpoint_directory, precision="fp32", backend_options=own)


@pytest.mark.parametrize(
    ("device", "wanted", "own", "degree"),
    [
        (None, 2, {}, 2),
        ("gpu:0,1,2,3", "auto", {}, 4),
        ("gpu:0,1,2,3", "auto", {"data_parallel": 2}, 2),
        (None, "auto", {}, 1),
    ],
)
def test_how_many_share_a_model(device: str | None, wanted: Any, own: dict[str, Any], degree: int) -> None:
    options = LoadOptions(device=device, tensor_parallel=wanted)
    assert launch.parallel(options, ea.FastDeployOptions(**own), tiny_config()) == degree


def test_a_copy_on_two_machines_needs_half_of_its_gpus_here() -> None:
    own = ea.FastDeployOptions(engine_arguments={"ips": "10.0.0.1,10.0.0.2"})
    options = LoadOptions(device="gpu:0,1", tensor_parallel=4)
    assert launch.parallel(options, own, tiny_config()) == 4
    assert launch.here(4, own) == 2
    with pytest.raises(ea.ArgumentError, match="needs 4 on this machine"):
        launch.parallel(options, ea.FastDeployOptions(), tiny_config())
    with pytest.raises(ea.ArgumentError, match="evenly among the 2 machines"):
        launch.parallel(LoadOptions(tensor_parallel=1), own, tiny_config())


def test_kv_arithmetic_is_that_of_the_documentation() -> None:
    """28 layers, 4 heads of keys and values, head_dim 128, bf16: 3.5 MiB for a block of 64."""
    config = tiny_config(num_hidden_layers=28, num_key_value_heads=4, head_dim=128, num_attention_heads=20)
    assert 64 * launch.kv_bytes_per_token(config, 1) == 3_670_016
    assert launch.kv_bytes_per_token(config, 8) == launch.kv_bytes_per_token(config, 4)
    footprint = FastDeployBackend().estimate(config, LoadOptions())
    assert footprint.kv_per_token == 57344


def test_what_is_neutral_is_left_out() -> None:
    plain = sampling(ea.SamplingParams(max_tokens=3), 7, "openai", guided=False, logprobs=False)
    assert plain == {"max_tokens": 3, "seed": 7}
    neutral = ea.SamplingParams(top_k=0, min_p=0.0, repetition_penalty=1.0, top_p=1.0)
    assert sampling(neutral, 7, "openai", guided=False, logprobs=False) == {
        "max_tokens": 256,
        "seed": 7,
        "top_p": 1.0,
    }


def test_a_model_in_memory_has_no_files_for_it() -> None:
    with pytest.raises(ea.ArgumentError, match="give a directory or a hub id"):
        FastDeployBackend().open_engine(None, tiny_config(), LoadOptions())
    with pytest.raises(ea.UnsupportedError, match="open_engine in place of open"):
        FastDeployBackend().open(ea.testing.synthetic(tiny_config()), LoadOptions())
    with pytest.raises(ea.ArgumentError, match="takes FastDeployOptions"):
        FastDeployBackend().reads_weights(LoadOptions(backend_options=ea.NativeOptions()))
    with pytest.raises(ea.ArgumentError, match="source=None: backend 'native' loads a checkpoint"):
        ea.Model.load(backend="native")


def rows(title: str) -> list[list[str]]:
    """Cells of the first table under a heading of the page, without the two lines of its head."""
    section = PAGE.read_text(encoding="utf-8").partition(title)[2]
    lines = [line for line in section.partition("\n#")[0].splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_shows_these_tables() -> None:
    shown = {row[0]: row[1] for row in rows("### Precision in FastDeploy")}
    assert shown == {ours: theirs or "-" for ours, theirs in QUANTIZATION.items()}
    assert {row[0]: row[1] for row in rows("### Settings in FastDeploy")} == dict(ENGINE_ARGUMENTS)
    fields = {row[0]: (row[1], row[2]) for row in rows("### Sampling in FastDeploy")}
    assert fields == {name: tuple(theirs or "-" for theirs in names) for name, names in SAMPLING.items()}
