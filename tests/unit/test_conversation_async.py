"""Conversations in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

import ernie_accel as ea

LoadMock = Callable[..., ea.Model]
Hold = Callable[[], AbstractContextManager[None]]


def said(conversation: ea.Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


def is_queued(conversation: ea.Conversation) -> bool:
    stream = conversation._answer and conversation._answer()
    return isinstance(stream, ea.AsyncConversationStream) and stream._handle is not None


def test_asend_is_send(load_mock: LoadMock) -> None:
    with load_mock("Nice.") as model:
        waiting, waited = model.conversation(system="Be brief."), model.conversation(system="Be brief.")

        async def main() -> None:
            done = await waiting.asend("One", max_tokens=9)
            assert done.text == "Nice."
            await waiting.asend("Two", max_tokens=9)

        asyncio.run(main())
        waited.send("One", max_tokens=9)
        waited.send("Two", max_tokens=9)
        assert waiting.token_ids == waited.token_ids
        assert waiting.messages == waited.messages
        waiting.rewind()
        assert said(waiting) == ["Be brief.", "One", "Nice."]


def test_astream_becomes_part_of_it_at_its_end(load_mock: LoadMock) -> None:
    with load_mock("It is noon.") as model:
        conversation = model.conversation()

        async def main() -> None:
            async with conversation.astream("What time is it?") as stream:
                assert "".join([chunk.text async for chunk in stream]) == "It is noon."
            assert (await stream.result()).finish_reason == "stop"

        asyncio.run(main())
        assert said(conversation) == ["What time is it?", "It is noon."]


def test_an_answer_that_is_left_stays_as_far_as_it_came(load_mock: LoadMock) -> None:
    with load_mock("abc" * 100, step_seconds=0.02) as model:
        conversation = model.conversation()

        async def main() -> None:
            async with conversation.astream("x", max_tokens=200) as stream:
                with pytest.raises(ea.ArgumentError, match="an answer is under way"):
                    await conversation.asend("y")
                await anext(aiter(stream))
            assert (await stream.result()).finish_reason == "cancelled"

        asyncio.run(main())
        question, answer = said(conversation)
        assert question == "x"
        assert answer
        assert len(answer) < 300


@pytest.mark.parametrize("within", [True, False])
def test_cancelling_the_task_of_a_stream_keeps_what_came(load_mock: LoadMock, within: bool) -> None:
    with load_mock("abc" * 100, step_seconds=0.02) as model:
        conversation = model.conversation()

        async def read() -> None:
            if within:
                async with conversation.astream("x", max_tokens=200) as stream:
                    async for _ in stream:
                        begun.set()
            else:
                async for _ in conversation.astream("x", max_tokens=200):
                    begun.set()

        async def main() -> None:
            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        begun = asyncio.Event()
        asyncio.run(main())
        assert len(conversation) == 1
        assert 0 < len(said(conversation)[1]) < 300
        gauges = model.metrics().gauges
        assert gauges["running"] == gauges["waiting"] == 0


def test_cancelling_asend_changes_nothing(load_mock: LoadMock, hold_steps: Hold) -> None:
    with load_mock("abc" * 100) as model:
        conversation = model.conversation()
        conversation.send("before", max_tokens=2)
        before = conversation.messages, conversation.token_ids

        async def main() -> None:
            with hold_steps():
                task = asyncio.create_task(conversation.asend("x", max_tokens=200))
                while not is_queued(conversation):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert (conversation.messages, conversation.token_ids) == before
            assert (await conversation.asend("y", max_tokens=2)).finish_reason == "length"

        asyncio.run(main())
        assert len(conversation) == 2


def test_asend_that_is_cancelled_before_a_full_queue_changes_nothing(
    load_mock: LoadMock, hold_steps: Hold
) -> None:
    with load_mock("abc", max_batch=1, engine=ea.EngineOptions(queue_size=1)) as model:
        conversation = model.conversation()

        async def main() -> None:
            with hold_steps():
                others = [model.submit("x", max_tokens=2) for _ in range(2)]
                task = asyncio.create_task(conversation.asend("x"))
                while not model._line._waiting:
                    await asyncio.sleep(0)
                with pytest.raises(ea.ArgumentError, match="an answer is under way"):
                    await conversation.asend("y")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not model._line._waiting
            for other in others:
                other.result()
            assert (await conversation.asend("y")).text == "abc"

        asyncio.run(main())
        assert said(conversation) == ["y", "abc"]


def test_a_stream_that_never_began_leaves_nothing(load_mock: LoadMock) -> None:
    with load_mock("abc") as model:
        conversation = model.conversation()

        async def main() -> None:
            async with conversation.astream("x"):
                pass
            stream = conversation.astream("x")
            await stream.aclose()
            await conversation.asend("y")

        asyncio.run(main())
        assert said(conversation)[0] == "y"


async def read(conversation: ea.Conversation) -> None:
    async with conversation.astream("x", max_tokens=200, timeout=0.03) as stream:
        async for _ in stream:
            pass


def test_a_failed_answer_is_none(load_mock: LoadMock) -> None:
    with load_mock("abc" * 100, step_seconds=0.01) as model:
        conversation = model.conversation()

        async def main() -> None:
            with pytest.raises(ea.DeadlineError):
                await conversation.asend("x", max_tokens=200, timeout=0.03)
            with pytest.raises(ea.DeadlineError):
                await read(conversation)
            with pytest.raises(ea.ArgumentError, match="block='no'"):
                conversation.astream("x", block="no")  # type: ignore[arg-type]

        asyncio.run(main())
        assert len(conversation) == 0
