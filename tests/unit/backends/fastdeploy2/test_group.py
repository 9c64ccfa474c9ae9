"""The form that runs ``LLM`` in a process group of ours, over a module that behaves as FastDeploy does."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy.backend import FastDeployBackend
from ernie_accel.backends.fastdeploy.group import Group
from ernie_accel.backends.fastdeploy.group_engine import _events
from ernie_accel.testing import tiny_config
from ernie_accel.testing.conformance.engines import ENGINE_CHECKS, EngineSubject
from tests.unit.backends.fastdeploy2.conftest import Installation, environment, left_behind, linux, processes

Load = Callable[..., ea.Model]
pytestmark = linux


def of_group(site: Path, word: str) -> list[int]:
    """Processes of the group whose command line holds a word."""
    mark = str(site).encode()
    return [pid for pid in processes() if mark in environment(pid) and word in command(pid)]


def works(pid: int, word: str) -> bool:
    """Whether a process runs the program of that word, and does not just start it."""
    return word == "supervise.py" or "supervise.py" not in command(pid)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


def test_generate_stream_chat_and_submit(load: Load, fastdeploy: Installation) -> None:
    with load() as model:
        done = model.generate([20, 21], max_tokens=5, temperature=0.0, seed=3)
        assert done.token_ids == (22, 23, 24, 25, 26)
        assert (done.text, done.finish_reason, done.seed) == ("<22><23><24><25><26>", "length", 3)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cached_tokens) == (2, 5, 1)
        assert model.generate([26], max_tokens=50).finish_reason == "stop"
        with model.stream([20], max_tokens=3) as stream:
            chunks = list(stream)
        assert [chunk.text for chunk in chunks] == ["<21>", "<22>", "<23>", ""]
        assert chunks[-1].finish_reason == "length"
        assert stream.result().text == "<21><22><23>"
        assert model.submit([20], max_tokens=2).result(30).token_ids == (21, 22)
        many = model.generate([[20], [30], [40]], max_tokens=2)
        assert [m.token_ids for m in many] == [(21, 22), (31, 32), (41, 42)]
        assert model.chat([{"role": "user", "content": "hello"}], max_tokens=2).reply is not None
        assert model.metrics().counters["requests_length"] >= 6
        assert model.info.backend == "fastdeploy"
        assert model.info.backend_reason == "backend='fastdeploy' was asked for."
        assert model.info.precision == "bf16"
    with pytest.raises(ea.ClosedError):
        model.generate([1])


def test_asyncio(load: Load) -> None:
    async def main(model: ea.Model) -> tuple[list[ea.Completion], str]:
        several = await asyncio.gather(*(model.agenerate([i], max_tokens=2) for i in (20, 30, 40)))
        text = "".join([chunk.text async for chunk in model.astream([20], max_tokens=3)])
        return several, text

    with load() as model:
        several, text = asyncio.run(main(model))
    assert [done.token_ids[0] for done in several] == [21, 31, 41]
    assert text == "<21><22><23>"


def test_what_is_asked_arrives_under_their_names(load: Load, fastdeploy: Installation) -> None:
    with load({"guided_decoding": True}) as model:
        model.generate(
            [20],
            max_tokens=2,
            temperature=0.5,
            top_p=0.9,
            top_k=7,
            min_p=0.1,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            stop=["zz"],
            stop_token_ids=[5],
            seed=11,
            choices=["a", "b"],
        )
    probe, asked = (note["params"] for note in fastdeploy.notes("request"))
    assert probe["max_tokens"] == 1
    wanted = {
        **{"n": 1, "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1},
        **{"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5},
        **{"stop": ["zz"], "stop_token_ids": [5], "seed": 11},
    }
    assert {name: asked[name] for name in wanted} == wanted
    assert asked["guided_decoding"]["choice"] == ["a", "b"]


def test_settings_arrive_under_their_names(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.gpus(*(f"{i}, NVIDIA H100, 9.0, 550.54, 81559, 81000" for i in range(4)))
    own: dict[str, Any] = {
        "memory_utilization": 0.8,
        "host_cache": 2 << 30,
        "engine_arguments": {"graph_optimization_config": {"use_cudagraph": False}},
    }
    options: dict[str, Any] = {
        "precision": "int8",
        "max_context": 64,
        "max_batch": 4,
        "memory_limit": 1 << 22,
        "tensor_parallel": 2,
        "device": "gpu:1,3",
        "engine": ea.EngineOptions(prefix_cache=False, step_tokens=128, speculation="lookup"),
    }
    with load(own, **options) as model:
        assert model.max_context == 64
        assert model.info.precision == "int8"
    (started,) = fastdeploy.notes("llm")
    assert started["quantization"] == "wint8"
    assert (started["max_model_len"], started["max_num_seqs"], started["max_num_batched_tokens"]) == (
        64,
        4,
        128,
    )
    assert (started["tensor_parallel_size"], started["data_parallel_size"]) == (2, 1)
    assert (started["gpu_memory_utilization"], started["swap_space"]) == (0.8, 2.0)
    assert started["enable_prefix_caching"] is False
    assert started["speculative_config"]["method"] == "ngram_match"
    assert started["graph_optimization_config"] == {"use_cudagraph": False}
    config = model.config
    block = 64 * 2 * 2 * config.head_dim * max(1, config.num_key_value_heads // 2) * config.num_hidden_layers
    assert started["num_gpu_blocks_override"] == (1 << 22) // block
    assert started["environment"]["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert started["environment"]["INFERENCE_MSG_QUEUE_ID"]


def test_a_checkpoint_that_was_quantized_for_it(
    fastdeploy: Installation, checkpoint_directory: Path, tmp_path: Path
) -> None:
    """FastDeploy reads weights that this library could not."""
    held = json.loads((checkpoint_directory / "config.json").read_text())
    shutil.copytree(checkpoint_directory, directory := tmp_path / "wint2")
    (directory / "config.json").write_text(
        json.dumps({**held, "quantization_config": {"quantization": "wint2"}})
    )
    with pytest.raises(ea.UnsupportedCheckpointError):
        ea.Model.load(directory, backend="reference")
    with ea.Model.load(
        directory, backend="fastdeploy", backend_options=fastdeploy.own(), progress=False
    ) as model:
        assert model.generate([20], max_tokens=1).token_ids == (21,)
        assert model.info.precision == "wint2"
    assert "quantization" not in fastdeploy.notes("llm")[0]


def test_alternatives_are_requests_of_their_own(load: Load, fastdeploy: Installation) -> None:
    with load() as model:
        done = model.generate([20], max_tokens=2, n=3, seed=5, temperature=1.0)
        assert [done.seed, *(other.seed for other in done.alternatives)] == sorted(
            {done.seed, *(other.seed for other in done.alternatives)},
            key=[done.seed, *(o.seed for o in done.alternatives)].index,
        )
        drawn = model.generate([20], max_tokens=1).seed
    seeds = [note["params"]["seed"] for note in fastdeploy.notes("request")[1:4]]
    assert len(set(seeds)) == 3
    assert 5 in seeds
    assert all(0 <= seed <= 922337203685477580 for seed in [*seeds, drawn])
    assert all(note["params"]["n"] == 1 for note in fastdeploy.notes("request"))


def test_a_stop_string_is_cut_here_whatever_comes(load: Load) -> None:
    with load() as model:
        done = model.generate([20], max_tokens=9, stop="><23")
    assert (done.text, done.finish_reason) == ("<21><22", "stop")


def test_an_error_of_one_request_leaves_the_others(load: Load) -> None:
    with load() as model:
        with pytest.raises(ea.ArgumentError, match="input is too long"):
            model.generate([609, 1])
        with pytest.raises(ea.BackendError, match="with 500: engine error"):
            model.generate([606, 1])
        with pytest.raises(ea.BackendError, match="failed: it ended the request without a token"):
            model.generate([608, 1])
        assert model.generate([20], max_tokens=1).token_ids == (21,)
        assert model.metrics().counters["requests_failed"] == 3


def test_a_worker_that_lives_and_does_nothing(load: Load) -> None:
    with load({"read_timeout": 1.5}) as model:
        with pytest.raises(ea.DeadlineError, match="nothing new for too long"):
            model.generate([605, 1])
        assert model.generate([20], max_tokens=1).token_ids == (21,)


def test_the_host_stays_as_it_is(load: Load) -> None:
    import logging

    before = (list(logging.getLogger().handlers), dict(os.environ), signal.getsignal(signal.SIGCHLD))
    with load() as model:
        model.generate([20], max_tokens=1)
    assert before == (list(logging.getLogger().handlers), dict(os.environ), signal.getsignal(signal.SIGCHLD))
    assert "fastdeploy" not in sys.modules


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def ended(model: ea.Model) -> bool:
    try:
        model.generate([20], max_tokens=1)
    except ea.BackendProcessError:
        return True
    return False


def abandoned(model: ea.Model) -> int:
    return model.metrics().gauges["abandoned"]


def test_cancel_and_timeouts_end_here_and_there(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.delay, fastdeploy.scenario = 0.05, "endless"
    with load(max_batch=1) as model:
        stream = model.stream([20], max_tokens=200)
        first = next(stream)
        stream.cancel()
        rest = list(stream)
        assert first.token_ids == (21,)
        assert rest[-1].finish_reason == "cancelled"
        assert stream.result().finish_reason == "cancelled"
        with pytest.raises(ea.DeadlineError):
            model.generate([21], max_tokens=200, timeout=1.0)
        waiting = model.submit([20], max_tokens=200)
        second = model.submit([30], max_tokens=1)  # behind it: only one at a time
        second.cancel()
        assert second.result(30).finish_reason == "cancelled"
        del waiting
        gc.collect()
        assert model.generate([40], max_tokens=1).token_ids == (41,)
        until(lambda: abandoned(model) == 0)
    cut = [note["request"] for note in fastdeploy.notes("request")[1:3]]
    assert [note["request"] for note in fastdeploy.notes("abort")][:2] == cut
    ends = {note["request"]: note for note in fastdeploy.notes("read to its end")}
    assert all(ends[name]["tokens"] < 200 for name in cut)
    assert all(note["left"] == 0 for note in ends.values())


def test_a_cancel_before_the_first_token_ends_there_too(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.delay, fastdeploy.scenario = 0.3, "endless"
    with load() as model:
        handles = [model.submit([20], max_tokens=200) for _ in range(4)]
        for handle in handles:
            handle.cancel()
        assert [handle.result(30).finish_reason for handle in handles] == ["cancelled"] * 4
        until(lambda: abandoned(model) == 0)
    begun = [note["request"] for note in fastdeploy.notes("request")[1:]]
    assert sorted(note["request"] for note in fastdeploy.notes("abort")) == sorted(begun)


def test_a_version_that_cannot_end_requests_keeps_their_places(load: Load, fastdeploy: Installation) -> None:
    """The caller does not wait for that; who comes next does, as in FastDeploy itself."""
    fastdeploy.delay, fastdeploy.scenario = 0.05, "old"
    with load(max_batch=1) as model:
        stream = model.stream([20], max_tokens=200)
        next(stream)
        stream.cancel()
        assert stream.result(30).finish_reason == "cancelled"
        until(lambda: abandoned(model) == 1)
        after = model.submit([40], max_tokens=1)
        assert model.metrics().gauges["running"] == 0
        assert model.metrics().gauges["waiting"] == 1
        assert after.result(30).token_ids == (41,)
        assert abandoned(model) == 0
    _, cancelled, following = fastdeploy.notes("request")
    ends = [note["request"] for note in fastdeploy.notes("read to its end")[1:]]
    assert ends == [cancelled["request"], following["request"]]
    assert fastdeploy.notes("read to its end")[1]["tokens"] == 10


def test_closing_does_not_wait_for_what_cannot_be_ended(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.delay, fastdeploy.scenario = 0.2, "old"
    model = load(max_batch=1)
    stream = model.stream([20], max_tokens=1000)
    next(stream)
    stream.cancel()
    waiting = model.submit([30], max_tokens=1)
    until(lambda: abandoned(model) == 1)
    model.close()
    with pytest.raises(ea.ClosedError):
        waiting.result(30)


@pytest.mark.parametrize("scenario", ["", "old"])
def test_whether_it_can_end_requests_is_told(
    fastdeploy: Installation, checkpoint_directory: Path, scenario: str
) -> None:
    fastdeploy.scenario = scenario
    options = LoadOptions(backend_options=fastdeploy.own())
    engine = FastDeployBackend().open_engine(checkpoint_directory, tiny_config(vocab_size=640), options)
    assert engine.info.details["stops_cancelled"] is (scenario == "")
    engine.close()


def test_a_place_is_given_up_after_long_silence(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.scenario = "old"
    with load({"read_timeout": 1.5}, max_batch=1) as model:
        stuck = model.submit([605, 1])
        until(lambda: len(fastdeploy.notes("request")) == 2)
        stuck.cancel()
        until(lambda: abandoned(model) == 1)
        assert model.generate([40], max_tokens=1).token_ids == (41,)
        assert abandoned(model) == 0


def test_log_probabilities(load: Load, fastdeploy: Installation) -> None:
    with load({"logprobs": True}) as model:
        done = model.generate([20], max_tokens=3, logprobs=2)
        assert done.logprobs == tuple(
            ea.TokenLogprob(token, -0.75, ((token + 1, -0.5), (token, -0.75))) for token in (21, 22, 23)
        )
        with model.stream([20], max_tokens=2, logprobs=1) as stream:
            chunks = list(stream)
        assert [chunk.logprobs for chunk in chunks] == [
            (ea.TokenLogprob(21, -0.75, ((22, -0.5),)),),
            (ea.TokenLogprob(22, -0.75, ((23, -0.5),)),),
            (),
        ]
        assert model.generate([20], max_tokens=1).logprobs is None
        with pytest.raises(ea.UnsupportedError, match=r"logprobs=21: at most 20 here.*'native'"):
            model.generate([20], logprobs=21)
    assert fastdeploy.notes("llm")[0]["enable_logprob"] is True
    assert [note["params"]["logprobs"] for note in fastdeploy.notes("request")] == [None, 2, 1, None]


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("other tokens", r"token 21 has those of \[22\]"),
        ("few alternatives", "1 alternatives where 2 were asked for"),
        ("logits", "12.5 is no log-probability"),
    ],
)
def test_log_probabilities_that_are_none(
    load: Load, fastdeploy: Installation, scenario: str, message: str
) -> None:
    fastdeploy.scenario = scenario
    with load({"logprobs": True}) as model:
        with pytest.raises(ea.BackendError, match=f"log-probabilities that are none: {message}"):
            model.generate([20], max_tokens=3, logprobs=2)
        assert model.generate([20], max_tokens=1).token_ids == (21,)


def test_the_queue_is_bounded(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.delay = 0.2
    with load(max_batch=1, engine=ea.EngineOptions(queue_size=1)) as model:
        running = model.submit([20], max_tokens=9)
        next(running)
        queued = model.submit([30], max_tokens=1)
        with pytest.raises(ea.QueueFullError, match="queue_size is 1"):
            model.submit([40], max_tokens=1, block=False)
        running.cancel()
        assert queued.result(30).token_ids == (31,)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("raises", "RuntimeError: Paddle operators were compiled for another commit"),
        ("fails silently", r"none of its worker processes is alive(.|\n)*no kernel image"),
        ("exits", r"SystemExit: 3"),
    ],
)
def test_a_start_that_fails(load: Load, fastdeploy: Installation, scenario: str, message: str) -> None:
    fastdeploy.scenario = scenario
    with pytest.raises(ea.BackendProcessError, match=message) as caught:
        load()
    assert any("[group.log]" in line for line in caught.value.log)
    assert caught.value.exit_code is not None
    assert left_behind(fastdeploy.site) == []


@pytest.mark.parametrize("scenario", ["hangs", "gives no token"])
def test_a_start_that_hangs(load: Load, fastdeploy: Installation, scenario: str) -> None:
    fastdeploy.scenario = scenario
    with pytest.raises(
        ea.BackendProcessError, match=r"not ready within 3 s: it was still (starting|waiting)"
    ):
        load({"start_timeout": 3.0})
    assert left_behind(fastdeploy.site) == []


@pytest.mark.parametrize("killed", ["serve.py", "sleep(3600)", "supervise.py"])
def test_a_process_that_is_killed_in_the_middle_of_answers(
    load: Load, fastdeploy: Installation, killed: str
) -> None:
    fastdeploy.delay = 0.1
    with load() as model:
        streams = [model.stream([20], max_tokens=1000), model.stream([30], max_tokens=1000)]
        for stream in streams:
            next(stream)
        found = of_group(fastdeploy.site, killed)
        victim = next(
            pid for pid in found if command(pid).split("\0")[0].endswith("python") and works(pid, killed)
        )
        os.kill(victim, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(ea.BackendProcessError, match="process group of FastDeploy has failed"):
                for _ in stream:
                    pass
        with pytest.raises(ea.BackendProcessError):
            model.generate([20], max_tokens=1)
    assert left_behind(fastdeploy.site) == []


def test_progress_tells_the_stages(fastdeploy: Installation, checkpoint_directory: Path) -> None:
    told: list[str] = []
    model = ea.Model.load(
        checkpoint_directory,
        backend="auto",
        backend_options=fastdeploy.own(),
        progress=lambda stage, done, total: told.append(stage),
    )
    model.close()
    model.close()
    assert told == ["importing FastDeploy", "starting FastDeploy", "waiting for a first token"]
    assert model.info.backend_reason == "auto: FastDeployOptions belong to 'fastdeploy'."


def test_a_dropped_model_takes_its_group_with_it(load: Load, fastdeploy: Installation) -> None:
    model = load()
    assert of_group(fastdeploy.site, "serve.py")
    del model
    gc.collect()
    assert left_behind(fastdeploy.site) == []


def test_closing_ends_what_waits(load: Load, fastdeploy: Installation) -> None:
    fastdeploy.delay = 0.2
    model = load()
    handle = model.submit([20], max_tokens=1000)
    next(handle)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result()
        except ea.ClosedError as error:
            ended.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    model.close()
    waiter.join(20)
    assert len(ended) == 1


PROGRAM = """
import sys, time, ernie_accel as ea
own = ea.FastDeployOptions(environment={"PYTHONPATH": sys.argv[2]}, log_directory=sys.argv[3])
model = ea.Model.load(sys.argv[1], backend="fastdeploy", backend_options=own, progress=False)
print(model.generate([20], max_tokens=1).token_ids, flush=True)
if sys.argv[4] == "stays":
    time.sleep(3600)
"""


@pytest.mark.parametrize("end", ["leaves", "stays"])
def test_the_group_ends_with_its_host(fastdeploy: Installation, checkpoint_directory: Path, end: str) -> None:
    """At the end of the program, and when that is killed."""
    arguments = [str(checkpoint_directory), str(fastdeploy.site), str(fastdeploy.logs), end]
    host = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    with host.stdout:
        assert host.stdout.readline() == "(21,)\n"
    if end == "stays":
        assert of_group(fastdeploy.site, "serve.py")
        host.kill()
    assert host.wait(60) == (0 if end == "leaves" else -signal.SIGKILL)
    limit = time.monotonic() + 30
    while (left_behind(fastdeploy.site) or fastdeploy.files_left()) and time.monotonic() < limit:
        time.sleep(0.1)
    assert list(fastdeploy.temporary.iterdir()) == []


@pytest.mark.parametrize("logs", [None, "logs"])
@pytest.mark.parametrize("scenario", ["", "raises", "fails silently", "hangs", "killed"])
def test_nothing_but_logs_of_failures_is_left_behind(
    fastdeploy: Installation, checkpoint_directory: Path, scenario: str, logs: str | None
) -> None:
    fastdeploy.scenario = scenario
    given = {"log_directory": None if logs is None else str(fastdeploy.logs), "start_timeout": 30.0}
    own = fastdeploy.own(**given | ({"start_timeout": 2.0} if scenario == "hangs" else {}))

    def start() -> ea.Model:
        return ea.Model.load(checkpoint_directory, backend="fastdeploy", backend_options=own, progress=False)

    if scenario in ("", "killed"):
        with start() as model:
            model.generate([20], max_tokens=1)
            assert len(list(fastdeploy.temporary.rglob("fake-fastdeploy-*"))) == 1
            if scenario == "killed":
                os.kill(of_group(fastdeploy.site, "sleep(3600)")[-1], signal.SIGKILL)
                until(lambda: ended(model))
    else:
        with pytest.raises(ea.BackendProcessError):
            start()
    started = fastdeploy.notes("llm")
    assert all(
        str(fastdeploy.temporary) in note["environment"]["PROMETHEUS_MULTIPROC_DIR"] for note in started
    )
    kept = [path.name for path in fastdeploy.temporary.glob("*/*")]
    assert kept == (["log"] if scenario and logs is None else [])
    assert fastdeploy.files_left() == []


def test_temporary_logs_are_kept_after_a_failure_alone(
    fastdeploy: Installation, checkpoint_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def kept() -> list[Path]:
        return sorted(tmp_path.glob("ernie_accel-*"))

    def start() -> ea.Model:
        own = fastdeploy.own(log_directory=None)
        return ea.Model.load(checkpoint_directory, backend="fastdeploy", backend_options=own, progress=False)

    model = start()
    assert len(kept()) == 1
    model.close()
    assert kept() == []
    fastdeploy.scenario = "raises"
    with pytest.raises(ea.BackendProcessError, match="ernie_accel-"):
        start()
    assert len(kept()) == 1


def test_temporary_logs_go_with_a_model_that_is_dropped(
    fastdeploy: Installation, checkpoint_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = fastdeploy.own(log_directory=None)
    model = ea.Model.load(checkpoint_directory, backend="fastdeploy", backend_options=own, progress=False)
    assert len(list(tmp_path.glob("ernie_accel-*"))) == 1
    del model
    gc.collect()
    assert list(tmp_path.glob("ernie_accel-*")) == []


def test_a_worker_that_ends_before_it_has_read_anything(tmp_path: Path) -> None:
    group = Group([sys.executable, "-c", "import time; time.sleep(0.2)"], environment={}, logs=tmp_path)
    group.send({"arguments": {}})
    assert list(_events(group, 30.0)) == []
    group.close()


def test_a_place_for_logs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ea.BackendProcessError, match="log_directory"):
        Group([sys.executable], environment={}, logs=tmp_path / "file/logs")


def test_a_group_that_does_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ea.BackendProcessError, match="does not start"):
        Group(["python"], environment={})
    assert list(tmp_path.iterdir()) == []
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_it_cannot_do_names_who_can(load: Load) -> None:
    with load() as model:
        for call in (
            lambda: model.logits([1, 2]),
            lambda: model.score("text"),
            lambda: model.embed("text"),
            lambda: model.clear_cache(),
            lambda: model.generate([1], logprobs=1),
            lambda: model.generate([1], ignore_eos=True),
            lambda: model.generate([1], grammar='start: "a"'),
            lambda: model.generate([1], choices=["a"]),
            lambda: model.generate([1], seed=2**64 - 1),
            lambda: model.generate([1], presence_penalty=3.0),
            lambda: model.generate([1], stop=list("abcdef")),
            lambda: model.profile().__enter__(),
        ):
            with pytest.raises(ea.UnsupportedError, match="'native'"):
                call()


def test_a_forked_child_is_told(load: Load) -> None:
    with load() as model:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                model.generate([20], max_tokens=1)
            except ea.BackendError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        assert b"forked" in os.read(reading, 1000)
        os.close(reading)
        assert model.generate([20], max_tokens=1).token_ids == (21,)


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_engines(
    fastdeploy: Installation, checkpoint_directory: Path, check: Callable[[EngineSubject], None]
) -> None:
    options = LoadOptions(backend_options=fastdeploy.own())
    config = tiny_config(vocab_size=640)
    check(EngineSubject(open=lambda: FastDeployBackend().open_engine(checkpoint_directory, config, options)))
