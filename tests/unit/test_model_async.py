"""The faces for asyncio, and those that share one engine with them."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

import ernie_accel as ea

LoadMock = Callable[..., ea.Model]
Hold = Callable[[], AbstractContextManager[None]]


def idle(model: ea.Model) -> bool:
    gauges = model.metrics().gauges
    return gauges["running"] == gauges["waiting"] == 0


def test_agenerate_gives_what_generate_gives(load_mock: LoadMock) -> None:
    with load_mock(replies={"one": "first", "two": "second"}) as model:

        async def main() -> None:
            done = await model.agenerate("one")
            assert done.text == "first"
            assert [c.text for c in await model.agenerate(["two", "one"])] == ["second", "first"]
            several = await asyncio.gather(*(model.agenerate(text) for text in ("one", "two", "one")))
            assert [c.text for c in several] == ["first", "second", "first"]
            four = await model.agenerate("one", n=3)
            assert len(four.alternatives) == 2

        asyncio.run(main())


def test_astream_gives_chunks(load_mock: LoadMock) -> None:
    with load_mock("It is noon.") as model:

        async def main() -> None:
            async with model.astream("What time is it?") as stream:
                chunks = [chunk async for chunk in stream]
            assert "".join(map(str, chunks)) == "It is noon."
            assert chunks[-1].finish_reason == "stop"
            assert (await stream.result()).text == "It is noon."

        asyncio.run(main())


def test_chat_has_async_twins(load_mock: LoadMock) -> None:
    messages = [{"role": "user", "content": "What time is it?"}]
    with load_mock("It is noon.") as model:

        async def main() -> None:
            assert (await model.achat(messages)).text == "It is noon."
            texts = [chunk.text async for chunk in model.astream_chat(messages)]
            assert "".join(texts) == "It is noon."

        asyncio.run(main())


def test_mistakes_are_raised_at_the_call(load_mock: LoadMock) -> None:
    with load_mock("abc") as model:
        with pytest.raises(ea.ArgumentError, match="n=2: a stream gives one completion"):
            model.astream("x", n=2)
        with pytest.raises(ea.ArgumentError, match="prompt is empty"):
            model.astream("")


def test_cancelling_a_task_ends_its_request(load_mock: LoadMock, hold_steps: Hold) -> None:
    with load_mock("abc") as model:

        async def main() -> None:
            with hold_steps():
                task = asyncio.create_task(model.agenerate("x", max_tokens=200, ignore_eos=True))
                await asyncio.sleep(0.03)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            while not idle(model):
                await asyncio.sleep(0.001)

        asyncio.run(main())
        assert model.metrics().counters["requests_cancelled"] == 1


def test_leaving_or_dropping_a_stream_ends_its_request(load_mock: LoadMock) -> None:
    with load_mock("abc", step_seconds=0.005) as model:

        async def begin(leave: bool) -> None:
            stream = model.astream("x", max_tokens=200, ignore_eos=True)
            async for _ in stream:
                break
            if leave:
                await stream.aclose()

        for leave in (True, False):
            asyncio.run(begin(leave))
            gc.collect()
            assert idle(model)
        assert model.metrics().counters["requests_cancelled"] == 2


def test_a_full_queue_does_not_hold_up_the_event_loop(load_mock: LoadMock, hold_steps: Hold) -> None:
    options: dict[str, Any] = {"max_batch": 1, "engine": ea.EngineOptions(queue_size=1)}
    with load_mock("abcdefgh", **options) as model:

        async def main() -> None:
            with hold_steps():
                tasks = [asyncio.create_task(model.agenerate("x")) for _ in range(6)]
                for _ in range(10):  # which would take until the steps are no longer held
                    await asyncio.sleep(0.001)
                assert model._line._waiting
                assert not any(task.done() for task in tasks)
            assert {c.text for c in await asyncio.gather(*tasks)} == {"abcdefgh"}

        asyncio.run(main())


def test_without_block_a_full_queue_is_an_error(load_mock: LoadMock, hold_steps: Hold) -> None:
    messages = [{"role": "user", "content": "x"}]
    with load_mock("abc", max_batch=1, engine=ea.EngineOptions(queue_size=1)) as model:

        async def refused() -> None:
            with pytest.raises(ea.QueueFullError):
                await model.agenerate("x", block=False)
            with pytest.raises(ea.QueueFullError):
                await model.agenerate(["x", "y"], block=False)
            with pytest.raises(ea.QueueFullError):
                await model.achat(messages, block=False)
            with pytest.raises(ea.QueueFullError):
                await model.astream("x", block=False).result()
            with pytest.raises(ea.QueueFullError):
                await anext(aiter(model.astream_chat(messages, block=False)))
            with pytest.raises(ea.QueueFullError):
                await model.conversation().asend("x", block=False)
            with pytest.raises(ea.QueueFullError):
                model.submit_chat(messages, block=False)

        async def main() -> None:
            with hold_steps():
                running = model.submit_chat(messages, max_tokens=400, ignore_eos=True)
                queued = model.submit("x")
                await refused()
                in_line = asyncio.create_task(model.achat(messages))
                while not model._line._waiting:
                    await asyncio.sleep(0)
                with pytest.raises(ea.QueueFullError, match="1 wait before it"):
                    await model.achat(messages, block=False)
                running.cancel()
            assert (await in_line).text == "abc"
            assert queued.result().text == "abc"
            assert (await model.achat(messages, block=False)).text == "abc"

        asyncio.run(main())


def test_conversations_that_are_answered_together(load_mock: LoadMock) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    with load_mock("Nice.") as model:
        handles = [model.submit_chat(messages, max_tokens=9) for messages in conversations]
        done = [handle.result() for handle in handles]
        assert [answer.reply.content for answer in done if answer.reply] == ["Nice."] * 3
        assert [answer.prompt_token_ids for answer in done] == [
            model.chat(messages).prompt_token_ids for messages in conversations
        ]
        with pytest.raises(ea.ArgumentError, match="block=1"):
            model.submit_chat(conversations[0], block=1)  # type: ignore[arg-type]


def test_tasks_before_a_full_queue_hold_no_threads_and_may_leave(
    load_mock: LoadMock, hold_steps: Hold
) -> None:
    options: dict[str, Any] = {"max_batch": 1, "engine": ea.EngineOptions(queue_size=1)}
    with load_mock("abcdefgh", **options) as model:

        async def main() -> None:
            with hold_steps():
                ask = partial(model.agenerate, "x", max_tokens=200, ignore_eos=True)
                first = [asyncio.create_task(ask()) for _ in "ab"]
                await asyncio.sleep(0.01)
                waiting = [asyncio.create_task(model.agenerate("x")) for _ in range(50)]
                await asyncio.sleep(0.01)
                assert await asyncio.to_thread(lambda: 7) == 7
                with pytest.raises(ea.DeadlineError, match="longer than its timeout"):
                    await model.agenerate("x", timeout=0.01)
                with pytest.raises(ea.DeadlineError, match="longer than its timeout"):
                    await model.agenerate("x", n=5, timeout=0.01)
                for task in waiting[:48]:
                    task.cancel()
                await asyncio.wait(waiting[:48])
                assert not any(task.done() for task in (*first, *waiting[48:]))
                for task in first:
                    task.cancel()
            assert [(await task).text for task in waiting[48:]] == ["abcdefgh"] * 2

        asyncio.run(main())
        assert not model._line._waiting


def test_two_tasks_share_a_stream_that_waits_for_the_queue(load_mock: LoadMock) -> None:
    options: dict[str, Any] = {"max_batch": 1, "engine": ea.EngineOptions(queue_size=1)}
    with load_mock("abcdef", step_seconds=0.002, **options) as model:

        async def main() -> None:
            before = [asyncio.create_task(model.agenerate("x")) for _ in range(3)]
            await asyncio.sleep(0.004)
            stream = model.astream("x")
            whole = asyncio.create_task(stream.result())
            assert "".join([chunk.text async for chunk in stream]) == (await whole).text == "abcdef"
            await asyncio.gather(*before)

        asyncio.run(main())
        counters = model.metrics().counters
        assert (counters["requests_stop"], counters["requests_cancelled"]) == (4, 0)


def test_tasks_before_a_full_queue_enter_in_order(load_mock: LoadMock) -> None:
    options: dict[str, Any] = {"max_batch": 1, "engine": ea.EngineOptions(queue_size=1)}
    with load_mock("ab", **options) as model:
        ended: list[int] = []

        async def ask(number: int) -> None:
            await model.agenerate("x", n=2)
            ended.append(number)

        async def main() -> None:
            await asyncio.gather(*(ask(number) for number in range(20)))

        asyncio.run(main())
        assert sorted(ended) == list(range(20))
        assert max(abs(place - number) for place, number in enumerate(ended)) <= 2


def test_a_cancel_at_the_moment_of_entering_is_not_lost(
    load_mock: LoadMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_mock("abc", max_batch=1, engine=ea.EngineOptions(queue_size=1)) as model:
        handles: list[ea.Handle] = []

        async def main() -> None:
            enter, entered = asyncio.Event(), model._line._in_line

            async def when_told(request: Any) -> Any:
                await enter.wait()
                handles.append(await entered(request))
                return handles[-1]

            def full(request: Any, *, block: bool) -> Any:
                monkeypatch.undo()
                monkeypatch.setattr(model._line, "_in_line", when_told)
                raise ea.QueueFullError("full")

            monkeypatch.setattr(model._engine, "submit", full)
            task = asyncio.create_task(model.agenerate("x", max_tokens=400, ignore_eos=True, timeout=60))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            enter.set()
            await asyncio.sleep(0)
            assert handles
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            handles.clear()  # the last that knows of the request
            gc.collect()
            while not idle(model):
                await asyncio.sleep(0.001)

        asyncio.run(main())
        assert model.metrics().counters["requests_cancelled"] == 1


def test_closing_ends_tasks_before_a_full_queue(load_mock: LoadMock) -> None:
    options: dict[str, Any] = {"max_batch": 1, "engine": ea.EngineOptions(queue_size=1)}
    with load_mock("ab", step_seconds=0.02, **options) as model:

        async def main() -> None:
            ask = partial(model.agenerate, "x", max_tokens=200, ignore_eos=True)
            tasks = [asyncio.create_task(ask()) for _ in range(6)]
            await asyncio.sleep(0.02)
            await asyncio.to_thread(model.close)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends} == {ea.ClosedError}

        asyncio.run(main())


def test_errors_come_through(load_mock: LoadMock) -> None:
    with load_mock("abc", step_seconds=0.01) as model:

        async def late() -> None:
            with pytest.raises(ea.DeadlineError, match="longer than its timeout"):
                await model.agenerate("x", max_tokens=100, ignore_eos=True, timeout=0.03)

        asyncio.run(late())

        async def closed() -> None:
            task = asyncio.create_task(model.agenerate("x", max_tokens=200, ignore_eos=True))
            await asyncio.sleep(0.02)
            await asyncio.to_thread(model.close)
            with pytest.raises(ea.ClosedError):
                await task

        asyncio.run(closed())


def test_submit_returns_at_once(load_mock: LoadMock, hold_steps: Hold) -> None:
    with load_mock("abc") as model:
        with hold_steps():
            handle = model.submit("x")
            assert not handle.done
            assert repr(handle).endswith("tokens, not at its end>")
            with pytest.raises(ea.ArgumentError, match=r"timeout='1': must be None or a number"):
                handle.result(timeout="1")  # type: ignore[arg-type]
            with pytest.raises(ea.DeadlineError, match="no result within"):
                handle.result(timeout=0.001)
        assert "".join(chunk.text for chunk in handle) == "abc"
        assert handle.done
        assert handle.result().text == "abc"
        assert repr(handle) == "<Handle: 4 tokens, stop>"
        with pytest.raises(ea.ArgumentError, match="submit takes one prompt"):
            model.submit(["x"])


def test_timeout_and_priority_are_checked(load_mock: LoadMock) -> None:
    with load_mock("abc") as model:
        for wrong in (0, -1, "1", True):
            with pytest.raises(
                ea.ArgumentError, match=r"timeout=.*: must be None or a number of seconds above 0"
            ):
                model.generate("x", timeout=wrong)  # type: ignore[arg-type]
        with pytest.raises(ea.ArgumentError, match="priority='high': must be a whole number"):
            model.generate("x", priority="high")  # type: ignore[call-overload]
        assert model.generate("x", timeout=60, priority=3).text == "abc"


def test_many_prompts_show_their_progress(load_mock: LoadMock) -> None:
    seen: list[tuple[str, int, int]] = []
    with load_mock("ab") as model:
        done = model.generate(["x"] * 600, progress=lambda *step: seen.append(step))
    assert [c.text for c in done] == ["ab"] * 600
    assert seen == [("prompts", i, 600) for i in range(1, 601)]


def test_many_texts_are_read_in_parts() -> None:
    import numpy as np

    seen: list[tuple[str, int, int]] = []
    with ea.Model.load(ea.testing.synthetic(ea.testing.tiny_config()), backend="reference") as model:
        texts = [[index % 50 + 1] for index in range(300)]
        vectors = model.embed(texts, progress=lambda *step: seen.append(step))
        assert vectors.shape == (300, model.config.hidden_size)
        assert np.allclose(vectors[257], model.embed([texts[257]])[0], atol=1e-5)
        scores = model.score(texts, progress=lambda *step: seen.append(step))
        assert [score.token_ids for score in scores] == [tuple(text) for text in texts]
        assert seen == [("texts", 256, 300), ("texts", 300, 300)] * 2
        assert model.embed([]).shape == (0, model.config.hidden_size)
        nothing: list[str] = []
        assert list(model.score(nothing)) == []
        with pytest.raises(ea.ArgumentError, match="progress"):
            model.embed(texts, progress="yes")  # type: ignore[arg-type]


def test_of_many_texts_the_one_that_is_too_long_is_named() -> None:
    with ea.Model.load(
        ea.testing.synthetic(ea.testing.tiny_config()), backend="reference", max_context=8
    ) as model:
        texts = [[1], [2], [3] * 9]
        for call, name in ((model.generate, "prompt"), (model.embed, "texts"), (model.score, "text_or_ids")):
            with pytest.raises(ea.ContextLengthError, match=rf"^{name}\[2\]: 9 tokens do not fit"):
                call(texts)
        with pytest.raises(ea.ContextLengthError, match=r"^9 tokens do not fit"):
            model.generate([3] * 9)


def test_a_timeout_holds_in_the_queue_too(load_mock: LoadMock) -> None:
    with load_mock("abc", step_seconds=0.02, max_batch=1) as model:
        first = model.submit("x", max_tokens=50, ignore_eos=True)
        began = time.monotonic()
        with pytest.raises(ea.DeadlineError):
            model.generate("y", timeout=0.05)
        assert time.monotonic() - began < 5
        first.cancel()


def test_embeddings_are_mean_hidden_states() -> None:
    import numpy as np

    checkpoint = ea.testing.synthetic(ea.testing.tiny_config())
    with (
        ea.Model.load(checkpoint, backend="native", precision="fp32") as native,
        ea.Model.load(checkpoint, backend="reference") as reference,
    ):
        texts = [[5, 6, 7], [9] * 40, [1]]
        found = native.embed(texts)
        assert found.shape == (3, native.config.hidden_size)
        assert found.dtype == np.float32
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert np.allclose(found, reference.embed(texts), atol=1e-4)
        assert np.array_equal(native.embed([9] * 40)[0], found[1])
        assert [s.token_ids for s in native.score(texts)] == [tuple(t) for t in texts]
        assert native.score(texts)[0] == native.score([5, 6, 7])


def test_without_hidden_states_embed_says_who_has_them(
    load_mock: LoadMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ernie_accel.engine.local import LocalEngine

    with load_mock("abc") as model:
        monkeypatch.setattr(LocalEngine, "capabilities", frozenset({"select"}))
        with pytest.raises(ea.UnsupportedError, match="backends 'native' and 'reference' do"):
            model.embed("x")
