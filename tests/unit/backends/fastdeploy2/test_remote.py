"""The form that talks to a running server, over one that behaves as FastDeploy's documentation says."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.base import LoadOptions
from ernie_accel.backends.fastdeploy import remote_engine
from ernie_accel.backends.fastdeploy import server as http
from ernie_accel.backends.fastdeploy.backend import FastDeployBackend
from ernie_accel.testing.conformance.engines import ENGINE_CHECKS, EngineSubject
from tests.unit.backends.fastdeploy2.fake_server import FakeServer

Load = Callable[..., ea.Model]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)


def test_without_a_directory_texts_go_as_they_are(remote: Load, server: FakeServer) -> None:
    with remote() as model:
        done = model.generate("Say hello", max_tokens=9, seed=4)
        assert (done.text, done.finish_reason, done.seed) == ("Hello, you there", "stop", 4)
        assert done.token_ids == (11, 12, 13, 2)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cached_tokens) == (5, 4, 2)
        assert model.tokenizer is None
        assert model.max_context == 4096
        assert (model.info.name, model.info.backend, model.info.layout) == ("ernie", "fastdeploy", "unknown")
        with pytest.raises(ea.UnsupportedError, match="directory as source"):
            _ = model.config
        with pytest.raises(ea.TokenizerError, match="directory as source"):
            model.conversation()
        with pytest.raises(ea.ArgumentError, match="prompt: is empty"):
            model.generate("")
        assert "ernie" in repr(model)
    (asked,) = server.received
    assert asked == {
        **{"model": "ernie", "stream": True, "stream_options": {"include_usage": True}},
        **{"return_token_ids": True, "prompt": "Say hello", "max_tokens": 9, "seed": 4},
    }


def test_with_a_directory_ids_go_and_defaults_are_its_own(
    remote: Load, server: FakeServer, checkpoint_directory: Path
) -> None:
    with remote(checkpoint_directory) as model:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("hello")
        done = model.generate("hello")
        assert done.prompt_token_ids == tuple(ids)
        model.chat([{"role": "user", "content": "hello"}])
        assert model.config.vocab_size == 640
        told = model.conversation().send("hello")
        assert told.reply is not None
    first, second, *_ = server.received
    assert first["prompt"] == ids
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.8, 0.8, 256)
    assert "top_k" not in first  # 0 is off, and the default there
    assert second["prompt"] == model.tokenizer.encode_chat([{"role": "user", "content": "hello"}])


def test_streams(remote: Load) -> None:
    with remote() as model:
        with model.stream("hi") as stream:
            chunks = list(stream)
        assert [chunk.text for chunk in chunks] == ["Hello", ",", " you", " there", ""]
        assert chunks[-1].finish_reason == "stop"
        assert stream.result().timings.time_to_first_token > 0
        assert model.submit("hi").result(20).text == "Hello, you there"
        assert [done.text for done in model.generate(["a", "b", "c"])] == ["Hello, you there"] * 3


def test_asyncio(remote: Load) -> None:
    async def main(model: ea.Model) -> tuple[str, ...]:
        done, chat = await asyncio.gather(model.agenerate("hi"), model.achat(HI))
        text = "".join([chunk.text async for chunk in model.astream("hi")])
        assert chat.reply is not None
        return done.text, text, chat.reply.content

    with remote() as model:
        assert asyncio.run(main(model)) == ("Hello, you there",) * 3


def test_a_model_is_loaded_where_an_event_loop_runs(remote: Load) -> None:
    async def main() -> str:
        with remote() as model:
            return (await model.agenerate("hi")).text

    assert asyncio.run(main()) == "Hello, you there"


def test_chat_without_a_directory_is_rendered_there(remote: Load, server: FakeServer) -> None:
    server.deltas = [
        {"reasoning_content": "They greet"},
        {"reasoning_content": " me."},
        {"content": "Hello", "completion_token_ids": [11]},
        {"content": "!", "completion_token_ids": [12, 2]},
        {"tool_calls": [{"index": 0, "function": {"name": "wave", "arguments": '{"hands"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 2}"}}]},
    ]
    server.finish = "tool_calls"
    tools = [{"type": "function", "function": {"name": "wave"}}]
    with remote() as model:
        done = model.chat(HI, tools=tools)
    assert done.text == "Hello!"
    assert done.finish_reason == "stop"
    assert done.reply is not None
    assert (done.reply.content, done.reply.thinking) == ("Hello!", "They greet me.")
    assert done.reply.tool_calls == (ea.ToolCall("wave", {"hands": 2}),)
    assert done.token_ids == (11, 12, 2)
    (asked,) = server.received
    assert (asked["messages"], asked["tools"]) == (HI, tools)


def test_text_with_line_separators_arrives_whole(remote: Load, server: FakeServer) -> None:
    server.reply = ["a\u2028b", "\x85", "\x0c", "床前"]
    with remote() as model:
        assert model.generate("hi").text == "a\u2028b\x85\x0c床前"


@pytest.mark.parametrize(
    ("theirs", "ours"), [("stop", "stop"), ("length", "length"), ("recover_stop", "stop")]
)
def test_reasons_for_the_end(remote: Load, server: FakeServer, theirs: str, ours: str) -> None:
    server.finish = theirs
    with remote() as model:
        assert model.generate("hi").finish_reason == ours


def test_a_stream_that_goes_on_after_its_end_is_left(
    remote: Load, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "LAST_WORDS_SECONDS", 0.2)
    server.scenarios = ["endless"]
    server.scenario = "with its end"
    with remote() as model:
        assert model.generate("hi").finish_reason == "stop"
        assert server.closed.wait(20)


def test_an_end_without_done_is_one(remote: Load, server: FakeServer) -> None:
    server.scenario = "no done"
    with remote() as model:
        assert model.generate("hi").text == "Hello, you there"


@pytest.mark.parametrize(
    ("scenario", "kind", "message"),
    [
        ("busy", ea.QueueFullError, r"429.*too many requests"),
        ("starting", ea.RemoteError, r"503.*not yet"),
        ("waited", ea.DeadlineError, r"408.*waited too long"),
        ("bad field", ea.ArgumentError, "top_p is wrong"),
        ("bad field, says 500", ea.ArgumentError, r"refused the request \(500\): top_p is wrong"),
        ("bad parameter, says 500", ea.ArgumentError, "top_p is wrong"),
        ("waited, says 500", ea.DeadlineError, r"waited too long.*\(500\)"),
        ("strange 500", ea.RemoteError, r"500.*engine error"),
        ("broken engine", ea.RemoteError, r"500.*engine error"),
        ("proxy page", ea.RemoteError, r"502.*<html>Bad gateway"),
        ("dead workers", ea.RemoteError, r"not alive \(304\)"),
        ("drops", ea.RemoteError, "could not be used"),
        ("no json", ea.RemoteError, r"none of the API.*nonsense"),
        ("no choices", ea.RemoteError, "none of the API"),
        ("wrong text", ea.RemoteError, "none of the API"),
        ("no utf-8", ea.RemoteError, "no UTF-8"),
        ("error event", ea.RemoteError, "worker died"),
        ("truncated", ea.RemoteError, "in the middle of an answer"),
        ("cut", ea.RemoteError, "broke off in the middle"),
    ],
)
def test_faults_are_typed_and_the_next_request_works(
    remote: Load, server: FakeServer, scenario: str, kind: type[Exception], message: str
) -> None:
    with remote() as model:
        server.scenario = scenario
        with pytest.raises(kind, match=message):
            model.generate("hi")
        server.scenario = ""
        assert model.generate("hi").text == "Hello, you there"
        assert model.metrics().counters["requests_failed"] == 1


def test_what_came_before_a_fault_was_streamed(remote: Load, server: FakeServer) -> None:
    server.scenario = "cut"
    with remote() as model:
        stream = model.stream("hi")
        assert [next(stream).text, next(stream).text] == ["Hello", ","]
        with pytest.raises(ea.RemoteError):
            next(stream)


@pytest.mark.parametrize("scenario", ["silent", "stalls"])
def test_a_server_that_says_nothing_ends_in_time(remote: Load, server: FakeServer, scenario: str) -> None:
    server.scenario = scenario
    nothing = pytest.raises(ea.DeadlineError, match=r"sent nothing for 1 s")
    with remote(own={"read_timeout": 1.0}) as model, nothing:
        model.generate("hi")
    with remote() as model, pytest.raises(ea.DeadlineError, match="longer than its timeout"):
        model.generate("hi", timeout=0.3)


def test_a_slow_server_is_no_fault(remote: Load, server: FakeServer) -> None:
    server.scenario = "slow"
    with remote(own={"read_timeout": 5.0}) as model:
        assert model.generate("hi").text == "Hello, you there"


def test_what_was_not_begun_is_asked_again(remote: Load, server: FakeServer) -> None:
    server.scenarios = ["busy", "starting"]
    with remote() as model:
        assert model.generate("hi").text == "Hello, you there"
    assert len(server.received) == 3


def test_what_may_have_begun_is_not_asked_again(remote: Load, server: FakeServer) -> None:
    for scenario in ("broken engine", "drops", "cut", "waited", "waited, says 500"):
        server.received.clear()
        server.scenarios = [scenario]
        with remote() as model, pytest.raises(ea.ErnieAccelError):
            model.generate("hi")
        assert len(server.received) == 1, scenario


def test_no_retries_where_none_are_wanted(remote: Load, server: FakeServer) -> None:
    server.scenarios = ["busy"]
    with remote(own={"retries": 0}) as model, pytest.raises(ea.QueueFullError):
        model.generate("hi")


def test_cancelling_closes_the_connection(remote: Load, server: FakeServer) -> None:
    server.scenario = "endless"
    with remote() as model:
        stream = model.stream("hi")
        next(stream)
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"
        assert server.closed.wait(20)
        server.closed.clear()
        with pytest.raises(ea.DeadlineError):
            model.generate("hi", timeout=1.0)  # long enough to have begun
        assert server.closed.wait(20)


def test_a_stop_string_ends_the_answer_here_too(remote: Load, server: FakeServer) -> None:
    server.scenario = "endless"
    server.reply = ["one", " two", " three"]
    server.ids = None
    with remote() as model:
        done = model.generate("hi", stop="tw")
        assert (done.text, done.finish_reason) == ("one ", "stop")
        assert server.closed.wait(20)


def test_closing_ends_what_is_under_way(remote: Load, server: FakeServer) -> None:
    server.scenario = "endless"
    model = remote()
    handle = model.submit("hi")
    next(handle)
    model.close()
    with pytest.raises(ea.ClosedError):
        handle.result()
    assert server.closed.wait(20)


def test_no_more_than_max_batch_are_under_way(remote: Load, server: FakeServer) -> None:
    server.scenario = "stalls"
    with remote(max_batch=2) as model:
        handles = [model.submit("hi") for _ in range(5)]
        for handle in handles[:2]:
            next(handle)
        assert model.metrics().gauges["running"] == 2
        assert model.metrics().gauges["waiting"] == 3
        assert len(server.received) == 2
        for handle in handles:
            handle.cancel()


def test_higher_priorities_leave_the_queue_first(remote: Load, server: FakeServer) -> None:
    server.scenario = "endless"
    with remote(max_batch=1) as model:
        running = model.submit("first")
        next(running)
        server.scenario = ""
        others = [model.submit(name, priority=p) for name, p in (("low", 0), ("high", 2), ("middle", 1))]
        running.cancel()
        for handle in others:
            handle.result(20)
    assert [asked["prompt"] for asked in server.received] == ["first", "high", "middle", "low"]


@pytest.mark.parametrize(
    ("status", "why"), [(304, "workers are not alive"), (404, "not healthy"), (503, "503")]
)
def test_a_server_that_is_not_healthy(remote: Load, server: FakeServer, status: int, why: str) -> None:
    server.health = status
    with pytest.raises(ea.BackendUnavailableError, match=why):
        remote()


def test_a_server_that_does_not_answer(remote: Load, server: FakeServer) -> None:
    server.scenario = "mute"
    with pytest.raises(ea.BackendUnavailableError, match="no answer within"):
        remote(own={"connect_timeout": 0.3})


def test_no_server(server: FakeServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        own = ea.FastDeployOptions(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}", retries=1)
        with pytest.raises(ea.BackendUnavailableError, match="is not ready"):
            ea.Model.load(backend_options=own)


def test_keys(remote: Load, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.key = "secret-key"
    with pytest.raises(ea.RemoteError, match=r"401.*Unauthorized.*api_key") as caught:
        remote(own={"api_key": "wrong-key"})
    assert caught.value.status == 401
    assert "wrong-key" not in str(caught.value)
    own = ea.FastDeployOptions(endpoint=server.url, api_key="secret-key")
    assert "secret" not in repr(own)
    with ea.Model.load(backend_options=own) as model:
        assert model.generate("hi").text == "Hello, you there"
        assert "secret" not in repr(model.info)
        server.key = "changed"
        with pytest.raises(ea.RemoteError, match="401") as late:
            model.generate("hi")
        assert late.value.status == 401


def test_models_by_name(remote: Load, server: FakeServer) -> None:
    server.models = [{"id": "a"}, {"id": "b", "max_model_len": 8}]
    with pytest.raises(ea.ArgumentError, match="the server has 'a', 'b'; name one"):
        remote()
    with remote(own={"model": "b"}) as model:
        with pytest.raises(ea.ContextLengthError, match="context of 8"):
            model.generate(list(range(9)))
        assert model.generate([5, 6]).prompt_token_ids == (5, 6)
    assert (server.received[-1]["model"], server.received[-1]["prompt"]) == ("b", [5, 6])
    server.models = "<html>"
    with pytest.raises(ea.RemoteError, match="gave no list of models: <html>"):
        remote()


def test_metrics_of_the_server_and_without(remote: Load, server: FakeServer) -> None:
    with remote() as model:
        model.generate("hi")
        found = model.metrics()
        assert found.gauges["server_num_requests_running"] == 3
        assert found.gauges["server_num_requests_waiting"] == 1
        assert found.counters["server_prompt_tokens_total"] == 1200
        assert found.counters["generated_tokens"] == 4
        assert found.histograms["time_to_first_token_seconds"].count == 1
        server.metrics = ""
        assert "server_num_requests_running" not in model.metrics().gauges
        server.scenario = "mute"


def test_the_plain_api(remote: Load, server: FakeServer) -> None:
    server.health = 404  # it need not have that
    with remote(own={"dialect": "openai", "guided_decoding": True}) as model:
        done = model.generate("hi", temperature=0.5)
        assert (done.text, done.token_ids) == ("Hello, you there", ())
        assert done.usage.completion_tokens == 4
        model.chat(HI, json_schema={"type": "object"})
        wrong: dict[str, Any] = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "regex": "a"}
        for name, value in {**wrong, "stop_token_ids": (1,)}.items():
            with pytest.raises(ea.UnsupportedError, match=f"{name}=.*'native'"):
                model.generate("hi", ea.SamplingParams(**{name: value}))
        with pytest.raises(ea.UnsupportedError, match="for chat"):
            model.generate("hi", json_schema={"type": "object"})
    first, second = server.received
    assert "return_token_ids" not in first
    assert second["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_structures_are_sent_only_where_they_are_allowed(remote: Load, server: FakeServer) -> None:
    with remote() as model, pytest.raises(ea.UnsupportedError, match="guided_decoding=True"):
        model.generate("hi", regex="[a-z]+")
    with remote(own={"guided_decoding": True}) as model:
        model.generate("hi", json_schema={"type": "object"})
        model.generate("hi", regex="[a-z]+")
    assert [asked.get("guided_json") for asked in server.received] == [{"type": "object"}, None]
    assert server.received[1]["guided_regex"] == "[a-z]+"


def test_settings_of_the_start_are_refused(remote: Load) -> None:
    for options in (
        {"precision": "int8"},
        {"tensor_parallel": 2},
        {"memory_limit": 1 << 30},
        {"device": "gpu:0"},
    ):
        with pytest.raises(ea.ArgumentError, match=f"{next(iter(options))}: the server has settled that"):
            remote(**options)
    with pytest.raises(ea.ArgumentError, match="queue_size"):
        remote(engine=ea.EngineOptions(prefix_cache=False))
    with remote(engine=ea.EngineOptions(queue_size=3)) as model:
        assert model.generate("hi").text


def test_a_missing_library_is_one_sentence(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ea.BackendUnavailableError, match=r"pip install 'ernie-accel\[remote\]'"):
        ea.Model.load(backend_options=ea.FastDeployOptions(endpoint=server.url))


def test_proxies_of_the_environment_are_not_used(remote: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with remote() as model:
        assert model.generate("hi").text == "Hello, you there"


def test_a_proxy_that_is_asked_for_is_used(server: FakeServer) -> None:
    own = ea.FastDeployOptions(
        endpoint="http://elsewhere.invalid", proxy=server.url, retries=0, dialect="openai"
    )
    with pytest.raises(ea.RemoteError, match="404"):  # the fake answers, and knows no absolute addresses
        ea.Model.load(backend_options=own)
    assert any(headers.get("Host") == "elsewhere.invalid" for headers in server.headers)


def test_many_threads_share_one_model(remote: Load) -> None:
    with remote(max_batch=8) as model:
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda: texts.append(model.generate("hi").text)) for _ in range(32)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert texts == ["Hello, you there"] * 32


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_engines(server: FakeServer, check: Callable[[EngineSubject], None]) -> None:
    own = ea.FastDeployOptions(endpoint=server.url)
    options = LoadOptions(backend_options=own)
    check(EngineSubject(open=lambda: FastDeployBackend().open_engine(None, None, options)))
