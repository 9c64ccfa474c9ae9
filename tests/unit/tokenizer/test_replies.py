"""Turns of an assistant in their parts; whatever a model writes, nothing is raised."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from ernie_accel.reply import Reply, ToolCall
from ernie_accel.tokenizer import Tokenizer
from ernie_accel.tokenizer.builtin import ERNIE, THINKING
from ernie_accel.tokenizer.replies import MARKS, parse_reply


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>\n"


def parts(text: str, *, in_thought: bool = True) -> tuple[str | None, str, tuple[ToolCall, ...]]:
    reply = parse_reply(text, in_thought=in_thought)
    assert reply.text == text
    return reply.thinking, reply.content, reply.tool_calls


def test_thoughts_and_response() -> None:
    text = "\nTwo and two.\n</think>\n\n<response>\nIt is 4.\n\nTruly.\n</response>\n"
    assert parts(text) == ("Two and two.", "It is 4.\n\nTruly.", ())
    assert parts(text, in_thought=False) == parts(text)
    assert parts("<think>\n" + text, in_thought=False) == parts(text)
    assert parts("Hm.</think>\n\nWithout marks. ") == ("Hm.", "Without marks.", ())


def test_thoughts_that_do_not_end() -> None:
    assert parts("Let me see") == ("Let me see", "", ())
    assert parts("<think>Let me see", in_thought=False) == ("Let me see", "", ())
    assert parts("") == ("", "", ())


def test_other_text_is_an_answer_as_it_is() -> None:
    assert parts(" Hello, a < b. \n", in_thought=False) == (None, " Hello, a < b. \n", ())


def test_tool_calls() -> None:
    text = "Ask.</think>\n\n" + call("weather", city="北京 </tool_call>", days=2) + call("time")
    calls = (ToolCall("weather", {"city": "北京 </tool_call>", "days": 2}), ToolCall("time", {}))
    assert parts(text) == ("Ask.", "", calls)
    both = "t</think><response>\nOne moment.\n</response>\n" + call("f", x=[1])
    assert parts(both) == ("t", "One moment.", (ToolCall("f", {"x": [1]}),))
    as_text = '</think><tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>'
    assert parts(as_text) == ("", "", (ToolCall("f", {"x": 1}),))
    assert parts('</think><tool_call>{"name": "f"}</tool_call>') == ("", "", (ToolCall("f", {}),))


@pytest.mark.parametrize(
    "block",
    [
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n',
        '<tool_call>\n{"name": "f", "argum',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        "<tool_call>[1]</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>f(1)</tool_call>",
        '<tool_call>{"name": "f"} and more</tool_call>',
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 10_000 + "}}</tool_call>",
        "<tool_call>",
    ],
    ids=lambda block: str(block)[:50],
)
def test_a_call_that_cannot_be_read_stays_text(block: str) -> None:
    before = call("good", a=1)
    thinking, content, calls = parts(f"t</think>\n{before}So: {block}")
    assert (thinking, content) == ("t", f"So: {block.strip()}")
    assert calls == (ToolCall("good", {"a": 1}),)


def test_a_response_may_speak_of_tool_calls() -> None:
    text = f"t</think><response>Write {call('f')}</response>{call('g')}"
    assert parts(text) == ("t", f"Write {call('f')}".strip(), (ToolCall("g", {}),))
    assert parts(f"t</think><response>Write {call('f')}")[2] == ()


def test_nothing_is_raised_whatever_is_written() -> None:
    rng = random.Random(5)
    pieces = [*MARKS, '{"name": "f", ', '"arguments": {}}', "{", "}", '"', "\\", "text", "\n", "\0", "好"]
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 14)))
        for in_thought in (True, False):
            assert isinstance(parse_reply(text, in_thought=in_thought), Reply)


def test_message_for_the_next_turn(with_settings: Callable[..., Tokenizer]) -> None:
    reply = parse_reply("t</think>" + call("add", a="<1>"), in_thought=True)
    message = reply.message()
    assert message["content"] == ""
    assert "thinking" not in message
    tokenizer = with_settings(tokenizer_config={"chat_template": THINKING})
    text = tokenizer.apply_template(
        [{"role": "user", "content": "?"}, message, {"role": "tool", "content": "3"}]
    )
    assert '<tool_call>\n{"name": "add", "arguments": {"a": "' in text
    assert parse_reply("Hello", in_thought=False).message() == {"role": "assistant", "content": "Hello"}


def test_the_template_tells_whether_a_turn_begins_with_a_thought(
    with_settings: Callable[..., Tokenizer],
) -> None:
    thinking = with_settings(tokenizer_config={"chat_template": THINKING})
    assert thinking.parse_reply("Hm").thinking == "Hm"
    plain = with_settings(tokenizer_config={"chat_template": ERNIE})
    assert plain.parse_reply("Hm") == Reply(content="Hm", text="Hm")
    refusing = with_settings(tokenizer_config={"chat_template": "{{ raise_exception('no') }}"})
    assert refusing.parse_reply("Hm").content == "Hm"


@pytest.mark.parametrize("special", [True, False])
def test_ids_keep_the_marks_that_text_leaves_out(
    special: bool, with_settings: Callable[..., Tokenizer]
) -> None:
    marks = sorted(MARKS)
    tokens = {
        str(600 + i): {"content": mark, "special": special} for i, mark in enumerate([*marks, "<|im_end|>"])
    }
    tokenizer = with_settings(tokenizer_config={"chat_template": THINKING, "added_tokens_decoder": tokens})
    text = f"Hm</think>\n\n<response>\nYes\n</response>\n{call('f')}"
    ids = [*tokenizer.encode(text + "<|im_end|>", parse_special=True), tokenizer.eos_ids[0]]
    reply = tokenizer.parse_reply(ids)
    assert (reply.thinking, reply.content, reply.tool_calls) == ("Hm", "Yes", (ToolCall("f", {}),))
    assert ("</think>" in tokenizer.decode(ids)) is not special
