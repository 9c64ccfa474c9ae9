"""Structured output and replies through ``Model``, on every backend that can run here."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.tokenizer.builtin import THINKING
from tests.unit.engine.structured.schemas import check, random_object, random_schema

pytest.importorskip("llguidance", reason="needs the extra 'structured'")

LoadMock = Callable[..., ea.Model]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "kind": {"enum": ["床前", "明月光"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["native", "reference", "mock"])
def model(checkpoint_directory: Path, request: pytest.FixtureRequest) -> Iterator[ea.Model]:
    if not ea.backends()[request.param].ok:
        pytest.skip(f"{request.param} cannot run here")
    with ea.Model.load(checkpoint_directory, backend=request.param) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def native(checkpoint_directory: Path) -> Iterator[ea.Model]:
    if not ea.backends()["native"].ok:
        pytest.skip("native cannot run here")
    with ea.Model.load(checkpoint_directory, backend="native", precision="fp32") as loaded:
        yield loaded


def longer(source: Path, target: Path) -> Path:
    """Copy a checkpoint and give it a longer context."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return target


def steps(model: ea.Model) -> int:
    return model.metrics().counters["steps"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_of_a_schema(model: ea.Model, temperature: float) -> None:
    done = model.generate("A thing: ", json_schema=SCHEMA, temperature=temperature, seed=3)
    check(done.text, SCHEMA)
    assert done.finish_reason == "stop"
    assert json.loads(done.text)["kind"] in ("床前", "明月光")
    assert done.usage.completion_tokens == len(done.token_ids)


def test_other_structures(model: ea.Model) -> None:
    assert re.fullmatch(r"[a-z]{3}-\d", model.generate("x", regex="[a-z]{3}-[0-9]", seed=1).text)
    assert model.generate("x", choices=["yes", "no"], seed=1).text in ("yes", "no")
    assert re.fullmatch("(ab){1,3}c", model.generate("x", grammar='start: "ab"~1..3 "c"', seed=1).text)
    params = ea.SamplingParams(choices=["yes", "no"])
    assert model.generate("x", params, seed=1).text in ("yes", "no")


def test_streams_give_the_same_text(model: ea.Model) -> None:
    whole = model.generate("x", json_schema=SCHEMA, temperature=1.0, seed=5)
    with model.stream("x", json_schema=SCHEMA, temperature=1.0, seed=5) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert chunks[-1].finish_reason == "stop"
    later = asyncio.run(model.agenerate("x", json_schema=SCHEMA, temperature=1.0, seed=5))
    assert later.token_ids == whole.token_ids


def test_alone_or_beside_others(native: ea.Model) -> None:
    """With alternatives, and other structures and free requests in the same batch."""
    alone = [native.generate("x", json_schema=SCHEMA, temperature=1.0, seed=seed) for seed in range(6)]
    handles = [native.submit("x", json_schema=SCHEMA, temperature=1.0, seed=seed) for seed in range(6)]
    free = native.submit("y", max_tokens=30, seed=1)
    chosen = native.submit("y", choices=["床前明月光", "the moon"], seed=1)
    assert [handle.result().token_ids for handle in handles] == [done.token_ids for done in alone]
    assert len(free.result().token_ids) > 0
    assert chosen.result().text in ("床前明月光", "the moon")
    several = native.generate("x", json_schema=SCHEMA, temperature=1.0, seed=2, n=3)
    assert several.token_ids == alone[2].token_ids
    for alternative in several.alternatives:
        check(alternative.text, SCHEMA)
    again = native.generate("x", json_schema=SCHEMA, temperature=1.0, seed=several.alternatives[0].seed)
    assert again.token_ids == several.alternatives[0].token_ids


def test_forced_tokens_skip_the_model(native: ea.Model) -> None:
    before = steps(native)
    only = native.generate("x", choices=["the quick brown fox jumps over the lazy dog"])
    assert only.text == "the quick brown fox jumps over the lazy dog"
    assert (only.finish_reason, steps(native) - before) == ("stop", 0)
    assert only.timings.time_to_first_token >= 0
    before = steps(native)
    done = native.generate("x", json_schema=SCHEMA, seed=1)
    assert len(done.token_ids) > 20
    assert steps(native) - before <= len(done.token_ids) // 2


def test_log_probabilities_of_forced_tokens_are_found_and_the_tokens_are_the_same(native: ea.Model) -> None:
    plain = native.generate("x", json_schema=SCHEMA, temperature=1.0, seed=4)
    told = native.generate("x", json_schema=SCHEMA, temperature=1.0, seed=4, logprobs=2)
    assert told.token_ids == plain.token_ids
    assert told.logprobs is not None
    assert [entry.token_id for entry in told.logprobs] == list(told.token_ids)
    with native.stream("x", json_schema=SCHEMA, seed=4, logprobs=1) as stream:
        assert all(chunk.logprobs is not None and len(chunk.logprobs) == 1 for chunk in stream)


def test_penalties_and_masks_together(native: ea.Model) -> None:
    done = native.generate("x", json_schema=SCHEMA, repetition_penalty=1.5, frequency_penalty=0.5, seed=6)
    check(done.text, SCHEMA)


def test_output_that_is_cut_is_a_beginning(model: ea.Model) -> None:
    whole = model.generate("x", json_schema=SCHEMA, temperature=0)
    for most in (1, 2, 5, len(whole.token_ids) - 1):
        part = model.generate("x", json_schema=SCHEMA, temperature=0, max_tokens=most)
        assert part.token_ids == whole.token_ids[:most]
        assert part.finish_reason == "length"
    exactly = model.generate("x", json_schema=SCHEMA, temperature=0, max_tokens=len(whole.token_ids))
    assert exactly.finish_reason == "stop"
    cut = model.generate("x", choices=["zinc, quartz"], max_tokens=3)
    assert "zinc, quartz".startswith(cut.text.rstrip("\ufffd"))
    assert cut.finish_reason == "length"


def test_ends_only_where_the_structure_may_end(native: ea.Model) -> None:
    lengths = [
        len(native.generate("x", regex="[ab]*", seed=seed, max_tokens=40, temperature=2.0).text)
        for seed in range(30)
    ]
    assert len(set(lengths)) > 3
    for seed in range(30):
        done = native.generate("x", regex="([ab]{4})*", seed=seed, max_tokens=40, temperature=2.0)
        assert done.finish_reason == "length" or len(done.text) % 4 == 0


def test_stop_strings_and_ids_still_end_a_text(native: ea.Model) -> None:
    assert native.generate("x", choices=["one, two"], stop=",").text == "one"
    assert native.tokenizer is not None
    comma = native.tokenizer.encode(",")[0]
    done = native.generate("x", regex="(a,)+", stop_token_ids=[comma], max_tokens=50)
    assert (done.text, done.token_ids[-1], done.finish_reason) == ("a", comma, "stop")


def test_mistakes_are_raised_before_anything_is_queued(model: ea.Model) -> None:
    before = steps(model)
    with pytest.raises(ea.ArgumentError, match=r"json_schema=.*Invalid type"):
        model.generate("x", json_schema={"type": "strin"})
    with pytest.raises(ea.ArgumentError, match="regex="):
        model.submit("x", regex="(")
    with pytest.raises(ea.ArgumentError, match="grammar="):
        model.stream("x", grammar="start: nothing")
    with pytest.raises(ea.ArgumentError, match="an output has one structure"):
        model.generate("x", regex="a", choices=["a"])
    with pytest.raises(ea.ArgumentError, match="ignore_eos"):
        model.generate("x", ea.SamplingParams(ignore_eos=True), regex="a")
    assert steps(model) == before


def test_without_a_tokenizer_there_is_no_structure() -> None:
    with (
        ea.Model.load(synthetic(tiny_config()), backend="reference") as model,
        pytest.raises(ea.TokenizerError, match="an output with a structure needs a tokenizer"),
    ):
        model.generate([1, 2], regex="a")


def test_random_schemas(native: ea.Model, checkpoint_directory: Path, tmp_path: Path) -> None:
    _outputs_are_valid(longer(checkpoint_directory, tmp_path / "longer"), range(40))


@pytest.mark.slow
def test_a_thousand_random_schemas(native: ea.Model, checkpoint_directory: Path, tmp_path: Path) -> None:
    _outputs_are_valid(longer(checkpoint_directory, tmp_path / "longer"), range(1000))


def _outputs_are_valid(directory: Path, seeds: range) -> None:
    """Of the requests, many at a time, none is cut: everything in the schemas is bounded."""
    with ea.Model.load(directory, backend="native", precision="fp32") as model:
        _check_outputs(model, seeds)


def _check_outputs(model: ea.Model, seeds: range) -> None:
    schemas = [
        random_object(random.Random(s)) if s % 3 == 0 else random_schema(random.Random(s)) for s in seeds
    ]
    handles = [
        model.submit(f"{s}", json_schema=schema, temperature=1.0, seed=s, max_tokens=2000, timeout=600)
        for s, schema in zip(seeds, schemas, strict=True)
    ]
    for handle, schema in zip(handles, schemas, strict=True):
        done = handle.result()
        assert done.finish_reason == "stop"
        check(done.text, schema)


# Replies.

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
]
CALL = 'Look.</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'


@pytest.fixture
def load_thinking(checkpoint_directory: Path, tmp_path: Path) -> Callable[[str], ea.Model]:
    """Load a mock with the Thinking template that answers with the given text."""
    directory = longer(checkpoint_directory, tmp_path / "thinking")
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": THINKING}))

    def load(reply: str) -> ea.Model:
        from ernie_accel.backends.mock import MockOptions

        with ea.Model.load(directory, backend="mock") as plain:
            assert plain.tokenizer is not None
            ids = plain.tokenizer.encode(reply)
        return ea.Model.load(directory, backend="mock", backend_options=MockOptions(reply=ids))

    return load


def test_chat_has_thoughts_and_tool_calls_apart(load_thinking: Callable[[str], ea.Model]) -> None:
    messages = [{"role": "user", "content": "What is the weather?"}]
    with load_thinking(CALL) as model:
        done = model.chat(messages, tools=TOOLS, max_tokens=200)
        assert done.text == CALL
        assert done.reply == ea.Reply(
            content="", thinking="Look.", tool_calls=(ea.ToolCall("weather", {"city": "北京"}),), text=CALL
        )
        with model.stream_chat(messages, tools=TOOLS, max_tokens=200) as stream:
            assert "".join(chunk.text for chunk in stream) == CALL
            assert stream.result().reply == done.reply
        assert asyncio.run(model.achat(messages, tools=TOOLS, max_tokens=200)).reply == done.reply
        follow_up = [*messages, done.reply.message(), {"role": "tool", "content": "Sunny."}]
        assert model.chat(follow_up, tools=TOOLS).usage.prompt_tokens > done.usage.prompt_tokens
        assert model.generate("x", max_tokens=5).reply is None


def test_reply_that_is_cut_or_malformed_stays_text(load_thinking: Callable[[str], ea.Model]) -> None:
    messages = [{"role": "user", "content": "?"}]
    with load_thinking(CALL) as model:
        cut = model.chat(messages, max_tokens=len(CALL) // 2)
        assert cut.reply is not None
        assert cut.finish_reason == "length" or cut.reply.tool_calls
        short = model.chat(messages, max_tokens=20).reply
        assert short is not None
        assert (short.thinking, short.tool_calls) == ("Look.", ())
        assert CALL.endswith(short.text, 0, len(short.text))
    with load_thinking('t</think><tool_call>{"name": }</tool_call>') as model:
        reply = model.chat(messages).reply
        assert reply is not None
        assert (reply.content, reply.tool_calls) == ('<tool_call>{"name": }</tool_call>', ())


def test_templates_without_tools_refuse_them(load_mock: LoadMock) -> None:
    with load_mock("Hi.") as model:
        with pytest.raises(ea.TokenizerError, match="no tools"):
            model.chat([{"role": "user", "content": "?"}], tools=TOOLS)
        reply = model.chat([{"role": "user", "content": "?"}]).reply
        assert reply == ea.Reply(content="Hi.", text="Hi.")


def test_structure_of_an_answer_begins_after_the_thought(
    checkpoint_directory: Path, tmp_path: Path, load_thinking: Callable[[str], ea.Model]
) -> None:
    """Of a mock that thinks, and then is made to answer."""
    messages = [{"role": "user", "content": "?"}]
    structures: list[dict[str, Any]] = [
        {"json_schema": SCHEMA},
        {"regex": "[a-z]{3}"},
        {"grammar": 'start: WORD ", " WORD\nWORD: /[a-z]{2}/'},
        {"choices": ["yes", "no"]},
    ]
    with load_thinking("Hm, <b>\nwell.</think> 42") as model:
        for structure in structures:
            done = model.chat(messages, temperature=0, max_tokens=500, **structure)
            assert done.finish_reason == "stop"
            assert done.reply is not None
            assert done.reply.thinking == "Hm, <b>\nwell."
            if "json_schema" in structure:
                check(done.reply.content, SCHEMA)
            else:
                assert re.fullmatch("[a-z]{3}|[a-z]{2}, [a-z]{2}|yes|no", done.reply.content)
        free = model.generate("x", choices=["yes", "no"])
        assert free.text in ("yes", "no")


def test_conversation_of_a_model_that_thinks(load_thinking: Callable[[str], ea.Model]) -> None:
    with load_thinking("Hm.</think>\n\n<response>\nYes.\n</response>\n") as model:
        talk = model.conversation()
        reply = talk.send("?", max_tokens=100).reply
        assert reply is not None
        assert (reply.thinking, reply.content) == ("Hm.", "Yes.")
        chosen = talk.send("?", max_tokens=100, temperature=0, choices=["left", "right"]).reply
        assert chosen is not None
        assert chosen.content in ("left", "right")
        assert chosen.thinking is not None


def test_a_grammar_is_worked_out_off_the_event_loop(
    native: ea.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = native._asking._compiler
    assert compiler is not None
    working, go_on = threading.Event(), threading.Event()
    make = compiler.constraint

    def slow(*args: Any, **kwargs: Any) -> Any:
        working.set()
        assert go_on.wait(20)
        return make(*args, **kwargs)

    monkeypatch.setattr(compiler, "constraint", slow)

    async def main() -> None:
        cancelled = asyncio.create_task(native.agenerate("x", choices=["ab", "cd"]))
        kept = asyncio.create_task(native.agenerate("x", choices=["ab", "cd"]))
        while not working.is_set():
            await asyncio.sleep(0.001)
        assert (await native.agenerate("x", max_tokens=2, ignore_eos=True)).finish_reason == "length"
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        go_on.set()
        assert (await kept).text in ("ab", "cd")
        stream = native.astream("x", choices=["ab", "cd"])
        assert "".join([chunk.text async for chunk in stream]) in ("ab", "cd")
        with pytest.raises(ea.ArgumentError, match="json_schema="):
            await native.agenerate("x", json_schema={"type": "strin"})
        mistaken = native.astream("x", json_schema={"type": "strin"})
        with pytest.raises(ea.ArgumentError, match="json_schema="):
            await anext(mistaken)

    asyncio.run(main())
    assert native.metrics().gauges["running"] == native.metrics().gauges["waiting"] == 0
