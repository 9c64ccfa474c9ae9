from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import pickle
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.backends.mock import MockOptions, MockRunner
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.types import Sampling

LoadMock = Callable[..., ea.Model]


@pytest.fixture(scope="module")
def model(checkpoint_directory: Path) -> ea.Model:
    return ea.Model.load(checkpoint_directory, backend="reference")


def ids_of(model: ea.Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def sequences(model: ea.Model) -> int:
    """Open sequences once what was sent to the engine is carried out, those kept for later prompts left out."""
    model.clear_cache()
    runner = model._engine._runner  # type: ignore[attr-defined]
    assert isinstance(runner, MockRunner)
    return len(runner._states)


# Prompts.


def test_a_string_is_encoded_as_it_is(load_mock: LoadMock) -> None:
    with load_mock("It is noon.") as model:
        done = model.generate("What time is it? </s>")
        assert done.prompt_token_ids == tuple(ids_of(model, "What time is it? </s>"))
        assert (done.text, done.finish_reason, done.token_ids[-1]) == ("It is noon.", "stop", 2)
        assert str(done) == "It is noon."


def test_ids_and_lists_of_prompts(load_mock: LoadMock) -> None:
    with load_mock(replies={"one": "first", "two": "second"}) as model:
        one, two = ids_of(model, "one"), ids_of(model, "two")
        assert [c.text for c in model.generate(["two", "one"])] == ["second", "first"]
        assert [c.text for c in model.generate([one, two])] == ["first", "second"]
        assert model.generate(one).text == "first"
        assert model.generate(np.array(one)).text == "first"
        assert model.generate(tuple(two)).text == "second"
        assert model.generate(["one"])[0].text == "first"
        nothing: list[str] = []
        assert model.generate(nothing) == []


def test_prompts_that_cannot_work(model: ea.Model) -> None:
    with pytest.raises(
        ea.ArgumentError, match=r"prompt: token_ids\[1\]=640: must be a whole number from 0 to 639"
    ):
        model.generate([5, 640])
    with pytest.raises(ea.ArgumentError, match="prompt: the prompt is empty"):
        model.generate("")
    with pytest.raises(ea.ArgumentError, match=r"prompt\[1\]: the prompt is empty"):
        model.generate(["a", ""])
    with pytest.raises(ea.ArgumentError, match="must be a string, a list of token ids"):
        model.generate(7)  # type: ignore[call-overload]
    with pytest.raises(ea.ArgumentError, match="prompt=b'text': must be a string"):
        model.generate(b"text")
    for wrong in (None, 5, "text", b"text", np.zeros((1, 2), np.int64)):
        with pytest.raises(ea.ArgumentError, match=r"token_ids=.*: must be a list of token ids"):
            model.logits(wrong)  # type: ignore[arg-type]
    with pytest.raises(ea.ArgumentError, match="text_or_ids=None: must be a string, a list of"):
        model.score(None)  # type: ignore[call-overload]
    with pytest.raises(ea.ArgumentError, match="n=2: a stream gives one completion"):
        model.stream("a", n=2)
    with pytest.raises(ea.ArgumentError, match="a stream continues one prompt"):
        model.stream(["a"])  # type: ignore[list-item]
    with pytest.raises(ea.ContextLengthError, match="257 tokens do not fit the context of 256"):
        model.generate([5] * 257)


def test_a_padding_row_is_valid_input(model: ea.Model) -> None:
    assert model.generate([639], max_tokens=1).usage.completion_tokens == 1


def test_padding_rows_are_never_drawn(load_mock: LoadMock) -> None:
    with load_mock([630, 631]) as model:
        assert model.tokenizer is not None
        done = model.generate("a", max_tokens=5, temperature=0)
        assert max(done.token_ids) < model.tokenizer.vocab_size


# Sampling.


def test_every_field_of_sampling_params_is_a_keyword() -> None:
    import inspect

    names = {field.name for field in fields(ea.SamplingParams)}
    methods: list[Callable[..., object]] = [
        ea.Model.generate,
        ea.Model.stream,
        ea.Model.chat,
        ea.Model.stream_chat,
        ea.Model.submit,
        ea.Model.agenerate,
        ea.Model.astream,
        ea.Model.achat,
        ea.Model.astream_chat,
        ea.Model.submit_chat,
        ea.Conversation.send,
        ea.Conversation.asend,
        ea.Conversation.stream,
        ea.Conversation.astream,
    ]
    own = {
        "self",
        "prompt",
        "messages",
        "params",
        "timeout",
        "priority",
        "progress",
        "block",
        "tools",
        "content",
    }
    for method in methods:
        signature = inspect.signature(method)
        assert names == set(signature.parameters) - own
        assert "None | None" not in str(signature)
    assert names == set(Sampling.__annotations__)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("max_token", " (did you mean 'max_tokens'?)"),
        ("max_new_tokens", " (here: max_tokens=...)"),
        ("stream", " (here: the methods stream, stream_chat, astream, astream_chat)"),
        ("response_format", " (here: json_schema=... (or regex, grammar, choices))"),
        ("colour", ""),
    ],
)
def test_an_unknown_keyword_is_an_error(model: ea.Model, keyword: str, meant: str) -> None:
    wanted = f"unknown keyword {keyword!r}{meant}: besides timeout and priority there are max_tok"
    with pytest.raises(TypeError, match=re.escape(wanted)):
        model.generate("a", **{keyword: 5})  # type: ignore[call-overload]


def test_a_conversation_is_no_prompt(model: ea.Model) -> None:
    message = {"role": "user", "content": "x"}
    for wrong in ([message], message):
        with pytest.raises(
            ea.ArgumentError, match=r"prompt: messages of a conversation go to chat\(messages\)"
        ):
            model.generate(wrong)  # type: ignore[arg-type]


def test_a_model_is_made_by_load_and_stays_in_its_process(model: ea.Model) -> None:
    with pytest.raises(ea.ArgumentError, match=r"Model\('path'\): a model is made with Model.load"):
        ea.Model("path")  # type: ignore[arg-type]
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied: load it in the process"):
            leave(model)


def test_a_stream_has_the_close_of_generators(load_mock: LoadMock) -> None:
    with load_mock("abc" * 50, step_seconds=0.002) as model:
        with contextlib.closing(model.stream("x", max_tokens=100)) as stream:
            next(stream)
        assert stream.result().finish_reason == "cancelled"


def test_a_keyword_overrides_its_field(load_mock: LoadMock) -> None:
    with load_mock("abcdefgh") as model:
        params = ea.SamplingParams(max_tokens=5, seed=3)
        assert model.generate("x", params).usage.completion_tokens == 5
        done = model.generate("x", params, max_tokens=2)
        assert (done.usage.completion_tokens, done.seed) == (2, 3)
        with pytest.raises(ea.ArgumentError, match="params=5: must be a SamplingParams"):
            model.generate("x", 5)  # type: ignore[call-overload]
        with pytest.raises(ea.ArgumentError, match="max_tokens=0"):
            model.generate("x", max_tokens=0)


def test_defaults_come_from_the_checkpoint(checkpoint_directory: Path, tmp_path: Path) -> None:
    greedy = tmp_path / "greedy"
    shutil.copytree(checkpoint_directory, greedy)
    (greedy / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": [2, 9]}))
    options = MockOptions(reply=[20, 9, 30], certainty=0.001)
    with ea.Model.load(greedy, backend="mock", backend_options=options) as model:
        assert model.generate([5]).token_ids == (20, 9)  # greedy, and 9 ends a text
        assert model.generate([5], ignore_eos=True, max_tokens=7).usage.completion_tokens == 7
    with ea.Model.load(checkpoint_directory, backend="mock", backend_options=options) as model:
        assert (
            model.generate([5], max_tokens=20, seed=1).token_ids
            != model.generate([5], max_tokens=20, seed=2).token_ids
        )


def test_end_tokens_of_config_and_tokenizer_count(checkpoint_directory: Path) -> None:
    with ea.Model.load(checkpoint_directory, backend="mock") as model:
        assert model.tokenizer is not None
        turn_end = model.tokenizer.id_of("<|end_of_sentence|>")
        assert turn_end is not None
    options = MockOptions(reply=[20, turn_end, 30])
    with ea.Model.load(checkpoint_directory, backend="mock", backend_options=options) as model:
        assert model.generate([5]).token_ids == (20, turn_end)
    virtual = synthetic(tiny_config(eos_token_id=[2, 7]))
    with ea.Model.load(virtual, backend="mock", backend_options=MockOptions(reply=[20, 7, 30])) as model:
        assert model.generate([5]).token_ids == (20, 7)


def test_a_damaged_generation_config_is_named(checkpoint_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint_directory, tmp_path / "bad")
    (tmp_path / "bad" / "generation_config.json").write_text('{"temperature": -1}')
    stages: list[str] = []
    with pytest.raises(ea.CheckpointError, match=r"generation_config\.json: temperature=-1"):
        ea.Model.load(
            tmp_path / "bad",
            backend="reference",
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == []  # it shows before the weights are read


def test_one_seed_for_a_batch_is_that_seed_for_each(load_mock: LoadMock) -> None:
    with load_mock(certainty=0.01) as model:
        together = model.generate(["one", "two", "one"], seed=5, max_tokens=20)
        alone = [model.generate(prompt, seed=5, max_tokens=20) for prompt in ("one", "two", "one")]
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert together[0].token_ids == together[2].token_ids


def test_a_drawn_seed_is_recorded_and_gives_the_same_again(load_mock: LoadMock) -> None:
    with load_mock(certainty=0.01) as model:
        first, second = model.generate(["one", "one"], max_tokens=20)
        assert first.seed != second.seed
        assert first.token_ids != second.token_ids
        assert model.generate("one", seed=second.seed, max_tokens=20).token_ids == second.token_ids


def test_alternatives(load_mock: LoadMock) -> None:
    with load_mock(certainty=0.01) as model:
        done = model.generate("one", n=3, seed=5, max_tokens=20)
        assert len(done.alternatives) == 2
        assert done.token_ids == model.generate("one", seed=5, max_tokens=20).token_ids
        assert "alternatives: 2" in repr(done)
        with pytest.raises(ea.ArgumentError, match="n=3: a stream gives one completion"):
            model.stream("one", ea.SamplingParams(n=3))


def test_logprobs_belong_to_the_tokens(model: ea.Model) -> None:
    done = model.generate([5, 6], max_tokens=3, temperature=0, logprobs=2)
    assert done.logprobs is not None
    score = model.score([5, 6, *done.token_ids])
    assert [entry.logprob for entry in done.logprobs] == pytest.approx(score.logprobs[2:], abs=1e-4)
    with pytest.raises(ea.ArgumentError, match="logprobs=641"):
        model.generate([5], logprobs=641)


def test_stop_tokens_must_exist(model: ea.Model) -> None:
    with pytest.raises(ea.ArgumentError, match="stop_token_ids: 640 is no token"):
        model.generate([5], stop_token_ids=[640])


def test_a_stop_string_may_span_tokens(load_mock: LoadMock) -> None:
    with load_mock("The quick brown fox") as model:
        done = model.generate("x", stop=["k bro"])
        assert (done.text, done.finish_reason) == ("The quic", "stop")
        assert model.tokenizer is not None
        assert model.tokenizer.decode(done.token_ids).startswith("The quick bro")


# Streams and chat.


def test_a_stream_is_the_completion_in_pieces(load_mock: LoadMock) -> None:
    with load_mock("床前明月光，🙂疑是地上霜。") as model, model.stream("x") as stream:
        chunks = list(stream)
        assert "".join(map(str, chunks)) == stream.result().text == "床前明月光，🙂疑是地上霜。"
        assert all("\ufffd" not in chunk.text for chunk in chunks)


def test_chat_renders_the_template(load_mock: LoadMock) -> None:
    messages = [{"role": "user", "content": "Hello </s>"}]
    with load_mock("Nice to meet you.") as model:
        done = model.chat(messages)
        assert model.tokenizer is not None
        assert list(done.prompt_token_ids) == model.tokenizer.encode_chat(messages)
        assert 2 not in done.prompt_token_ids
        assert done.text == "Nice to meet you."
        assert "".join(chunk.text for chunk in model.stream_chat(messages)) == done.text
        with pytest.raises(ea.ArgumentError, match="messages"):
            model.chat("Hello")  # type: ignore[arg-type]


# Logits and scores.


def test_logits_are_raw_and_complete(model: ea.Model) -> None:
    logits = model.logits([5, 6, 7])
    assert logits.shape == (3, 640)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.allclose(model.logits([5, 6]), logits[:2], atol=1e-4)


def test_score_of_a_text_begins_with_bos(model: ea.Model) -> None:
    score = model.score("Hello")
    assert score.token_ids == (1, *ids_of(model, "Hello"))
    assert score.logprobs[0] is None
    logits = model.logits(score.token_ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [logprobs[i, token] for i, token in enumerate(score.token_ids[1:])]
    assert score.logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-4)


def test_ids_are_scored_as_given(model: ea.Model) -> None:
    assert model.score([9, 8]).token_ids == (9, 8)


# Representations.


def test_representations_help(model: ea.Model) -> None:
    assert repr(model).startswith(
        "Model(name=tiny-ERNIE, architecture=ernie4_5, parameters=127.3 k, backend=reference"
    )
    done = model.generate([5], max_tokens=2, seed=4)
    assert "finish_reason: length, tokens: 1 + 2" in repr(done)
    assert "seed: 4" in repr(done)
    assert "127.3 k (embedding 41.0 k" in repr(model.info)
    for thing in (model, done, model.info):
        page = thing._repr_html_()
        assert page.startswith("<strong>")
        assert "<script" not in page


def test_html_is_escaped(load_mock: LoadMock) -> None:
    with load_mock("<script>") as model:
        assert "&lt;script&gt;" in model.generate("x")._repr_html_()


# Ends.


def test_close_refuses_everything(load_mock: LoadMock) -> None:
    model = load_mock("abc", step_seconds=0.01)
    stream = model.stream("x", max_tokens=200, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    nothing: list[str] = []
    for call in (
        lambda: list(stream),
        lambda: model.generate("x"),
        lambda: model.submit("x"),
        lambda: model.embed("x"),
        model.metrics,
        model.clear_cache,
        lambda: model.generate(nothing),
        lambda: model.stream("x"),
        lambda: model.chat([{"role": "user", "content": "x"}]),
        lambda: model.logits([1]),
        lambda: model.score("x"),
    ):
        with pytest.raises(ea.ClosedError):
            call()
    assert "state=closed" in repr(model)


def test_ctrl_c_leaves_the_model_usable(load_mock: LoadMock, monkeypatch: pytest.MonkeyPatch) -> None:
    main = threading.main_thread().ident
    assert main is not None
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with load_mock("abcdefgh") as model:
            forward, steps = MockRunner.forward, []

            def interrupted(runner: MockRunner, batch: Any) -> Any:
                steps.append(batch)
                if len(steps) == 3:
                    signal.pthread_kill(main, signal.SIGINT)
                    time.sleep(0.1)
                return forward(runner, batch)

            monkeypatch.setattr(MockRunner, "forward", interrupted)
            with pytest.raises(KeyboardInterrupt) as caught:
                model.generate(["x", "y", "z"])
            assert caught.tb is not None  # keeps all that the call held alive
            assert sequences(model) == 0
            assert model.generate("x").text == "abcdefgh"
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_stream_that_is_dropped_gives_its_memory_back(load_mock: LoadMock) -> None:
    with load_mock("abc") as model:
        for _ in model.stream("x"):
            break
        gc.collect()
        assert sequences(model) == 0


def test_a_failed_batch_leaves_nothing_behind(load_mock: LoadMock) -> None:
    with load_mock("abc") as model:
        with pytest.raises(ea.ContextLengthError):
            model.generate([[5], [5] * 1000])
        gc.collect()
        model.generate([5])
        assert sequences(model) == 0


def test_one_model_from_several_threads(load_mock: LoadMock) -> None:
    with load_mock(certainty=0.01, step_seconds=0.0005) as model:
        expected = {i: model.generate([5 + i], seed=i, max_tokens=30).token_ids for i in range(5)}
        found = {}

        def work(i: int) -> None:
            found[i] = tuple(
                t for chunk in model.stream([5 + i], seed=i, max_tokens=30) for t in chunk.token_ids
            )

        threads = [threading.Thread(target=work, args=(i,)) for i in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected


def test_a_full_context(load_mock: LoadMock) -> None:
    with load_mock(max_context=16) as model:
        done = model.generate([5] * 12, max_tokens=100)
        assert (done.usage.completion_tokens, done.finish_reason) == (4, "length")


def test_more_prompts_than_sequences(load_mock: LoadMock) -> None:
    with load_mock("abc", max_batch=2) as model:
        assert [c.text for c in model.generate(["x"] * 7)] == ["abc"] * 7
        assert sequences(model) == 0


def test_values_that_no_call_takes(model: ea.Model) -> None:
    with pytest.raises(ea.ArgumentError, match="block=3: must be True or False"):
        model.submit("x", block=3)  # type: ignore[arg-type]
    with pytest.raises(ea.ArgumentError, match="progress=3: must be None, True, False or a callable"):
        model.generate("x", progress=3)  # type: ignore[call-overload]
    with pytest.raises(ea.ArgumentError, match="n=1000000: must be at most 1024"):
        model.generate("x", n=1_000_000)
    assert model.tokenizer is not None
    for reply in (5, None, b"text"):
        with pytest.raises(ea.ArgumentError, match="must be a text or token ids"):
            model.tokenizer.parse_reply(reply)  # type: ignore[arg-type]
    with pytest.raises(ea.ArgumentError):
        model.tokenizer.parse_reply(["a"])  # type: ignore[list-item]


def test_async_streams_say_how_far_they_are(model: ea.Model) -> None:
    async def main() -> None:
        stream = model.astream("x", max_tokens=2, ignore_eos=True)
        assert repr(stream) == "<AsyncTokenStream: 0 tokens, not at its end>"
        async for _ in stream:
            pass
        assert repr(stream) == "<AsyncTokenStream: 2 tokens, length>"

    asyncio.run(main())
