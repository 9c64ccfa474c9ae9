"""Log-probabilities of a server: read, given ids where those are certain, refused where not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ernie_accel as ea
from ernie_accel.backends.fastdeploy.answer import Answer
from ernie_accel.backends.fastdeploy.logprobs import Names, Shown, of_rows, shown
from ernie_accel.tokenizer.load import load_tokenizer
from tests.unit.backends.fastdeploy2.fake_server import FakeServer

Load = Callable[..., ea.Model]
HI = [{"role": "user", "content": "hi"}]
OWN = {"logprobs": True}


@pytest.fixture
def tokenizer(checkpoint_directory: Path) -> ea.Tokenizer:
    found = load_tokenizer(checkpoint_directory)
    assert found is not None
    return found


def forms(tokenizer: ea.Tokenizer, token: int) -> set[bytes]:
    data = (tokenizer.special_text(token) or "").encode() or tokenizer.token_bytes(token)
    return {data, data.removeprefix(b" ")} - {b""}


def certain(tokenizer: ea.Tokenizer) -> list[int]:
    """Ids that no other token is shown like, in whole characters."""
    count = Counter(form for token in range(tokenizer.vocab_size) for form in forms(tokenizer, token))
    alone = [i for i in range(tokenizer.vocab_size) if all(count[form] == 1 for form in forms(tokenizer, i))]
    return [i for i in alone if tokenizer.token_bytes(i).isascii() and tokenizer.token_bytes(i).strip()]


def text(tokenizer: ea.Tokenizer, token: int) -> str:
    return str(tokenizer.token_bytes(token).decode().removeprefix(" "))


def test_every_token_that_is_shown_like_no_other_is_found(tokenizer: ea.Tokenizer) -> None:
    names, count = Names(tokenizer), Counter[bytes]()
    for token in range(tokenizer.vocab_size):
        count.update(forms(tokenizer, token))
    found = uncertain = 0
    for token in range(tokenizer.vocab_size):
        for form in forms(tokenizer, token):
            given = Shown(form.decode("utf-8", "replace"), -1.0, data=form)
            if count[form] > 1:
                uncertain += 1
                with pytest.raises(ea.UnsupportedError, match="any of the ids"):
                    names.id_of(given)
            else:
                found += 1
                assert names.id_of(given) == token
    assert found > 300
    assert uncertain > 0


def test_ids_that_are_said_need_no_tokenizer(tokenizer: ea.Tokenizer) -> None:
    for names in (Names(None), Names(tokenizer)):
        assert names.id_of(Shown("token_id:77", -1.0)) == 77
        assert names.id_of(Shown("x", -1.0, token_id=5)) == 5
    with pytest.raises(ea.UnsupportedError, match="give the directory of the server's tokenizer"):
        Names(None).id_of(Shown("x", -1.0))


def test_a_token_that_is_no_text_is_known_by_its_piece(tokenizer: ea.Tokenizer) -> None:
    names, token = Names(tokenizer), tokenizer.id_of("<0xE5>")
    assert token is not None
    spelled = "bytes:" + "".join(f"\\x{byte:02x}" for byte in b"<0xE5>")
    assert names.id_of(Shown(spelled, -1.0)) == token
    assert names.id_of(Shown("bytes:\\xe5", -1.0, data=b"\xe5")) == token
    for unreadable in ("\ufffd", "bytes:\\xef\\xbf\\xbd"):
        with pytest.raises(ea.UnsupportedError, match="no token of this tokenizer"):
            names.id_of(Shown(unreadable, -1.0))


def test_an_alternative_that_is_the_token_itself_has_its_id() -> None:
    token = Shown("the", -0.5, top=(Shown("the", -0.5), Shown("token_id:9", -0.25)))
    assert Names(None).logprob(token, 7, 2) == ea.TokenLogprob(7, -0.5, ((9, -0.25), (7, -0.5)))
    with pytest.raises(ValueError, match="2 alternatives where 3 were asked for"):
        Names(None).logprob(token, 7, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 of 1 tokens have some"),
        ([[[5, 6], [0.5, -1.0]]], "0.5 is no log-probability"),
        ([[[6, 5], [-1.0, -1.0]]], "token 5 has those of .6."),
        ([[[5], [-1.0]]], "0 alternatives where 1 were asked for"),
        ([[[5, 6], [-1.0]]], "shorter"),
    ],
)
def test_rows_that_are_none(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_rows([5], rows, 1)


def test_values_at_the_edge() -> None:
    (made,) = of_rows([5], [[[5, 6], [-math.inf, 1e-7]]], 1)
    assert made == ea.TokenLogprob(5, -math.inf, ((6, 1e-7),))
    with pytest.raises(ValueError, match="nan is no log-probability"):
        of_rows([5], [[[5, 6], [math.nan, -1.0]]], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": ["a"], "token_logprobs": []},
        {"tokens": ["a"], "token_logprobs": [None]},
        {"tokens": [3], "token_logprobs": [-1.0]},
        {"tokens": ["a"], "token_logprobs": [2.0]},
        {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": ["b"]},
        {"content": [{"token": "a"}]},
        {"content": [{"token": "a", "logprob": "-1"}]},
        {"content": [{"token": "a", "logprob": -1.0, "bytes": [300]}]},
        {"content": [["a", -1.0]]},
        {"content": 3},
        [1],
        "x",
    ],
)
def test_malformed_ones_are_an_error_of_the_server(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        shown(wrong)
    answer = Answer(False, 1, Names(None))
    with pytest.raises(ea.RemoteError, match="none of the API"):
        answer.take(json.dumps({"choices": [{"index": 0, "text": "a", "logprobs": wrong}]}))


def test_more_ids_than_log_probabilities() -> None:
    one = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}
    choice = {"index": 0, "text": "ab", "logprobs": one, "completion_token_ids": [5, 6]}
    with pytest.raises(ea.RemoteError, match="2 tokens with the log-probabilities of 1"):
        Answer(False, 1, Names(None)).take(json.dumps({"choices": [choice]}))


def test_completions_of_fastdeploy(
    remote: Load, server: FakeServer, checkpoint_directory: Path, tokenizer: ea.Tokenizer
) -> None:
    first, second, third, *_ = certain(tokenizer)
    a, b, c = (text(tokenizer, token) for token in (first, second, third))
    server.reply, server.ids = [a, b], [first, second]
    server.logprobs = [[(a, -0.5), (a, -0.5), (c, -1.5)], [(b, -3.0), (a, -0.25), (c, -0.5)]]
    with remote(checkpoint_directory, OWN) as model:
        done = model.generate("hello", logprobs=2)
        with model.stream("hello", logprobs=1) as stream:
            chunks = [chunk.logprobs for chunk in stream]
        assert model.generate("hello").logprobs is None
    assert done.token_ids == (first, second)
    assert done.logprobs == (
        ea.TokenLogprob(first, -0.5, ((first, -0.5), (third, -1.5))),
        ea.TokenLogprob(second, -3.0, ((first, -0.25), (third, -0.5))),
    )
    assert chunks == [
        (ea.TokenLogprob(first, -0.5, ((first, -0.5),)),),
        (ea.TokenLogprob(second, -3.0, ((first, -0.25),)),),
        (),
    ]
    assert [asked.get("logprobs") for asked in server.received] == [2, 1, None]


def test_chats_that_a_server_renders(remote: Load, server: FakeServer) -> None:
    """Without a tokenizer: ids come beside, and as a field or in place of the text."""
    server.deltas = [{"content": "Hi", "completion_token_ids": [11]}, {"content": "!"}]
    server.logprobs = [[("Hi", -0.5), ("token_id:3", -0.25)], [("token_id:12", -0.5), ("token_id:12", -0.5)]]
    with remote(own=OWN) as model:
        done = model.chat(HI, logprobs=1)
        assert done.logprobs == (
            ea.TokenLogprob(11, -0.5, ((3, -0.25),)),
            ea.TokenLogprob(12, -0.5, ((12, -0.5),)),
        )
        assert done.token_ids == (11, 12)
        server.logprobs = [[("Hi", -0.5), ("Ho", -0.25)], [("!", -0.5), ("?", -0.25)]]
        server.says = lambda token: {"id": 100 + ord(token[-1])}
        again = model.chat(HI, logprobs=1)
    assert again.logprobs is not None
    assert [one.token_id for one in again.logprobs] == [11, 100 + ord("!")]
    assert again.logprobs[0].top == ((100 + ord("o"), -0.25),)
    assert (server.received[0]["logprobs"], server.received[0]["top_logprobs"]) == (True, 1)


def test_another_server_that_gives_no_ids(
    remote: Load, server: FakeServer, checkpoint_directory: Path, tokenizer: ea.Tokenizer
) -> None:
    first, second, *_ = certain(tokenizer)
    a, b = text(tokenizer, first), text(tokenizer, second)
    server.reply, server.ids = [a, b], None
    server.logprobs = [[(a, -0.5), (a, -0.5)], [(b, -0.5), (a, -0.25)]]
    with remote(checkpoint_directory, {**OWN, "dialect": "openai"}) as model:
        done = model.generate("hello", logprobs=1, top_k=0)
    assert done.token_ids == (first, second)
    assert done.logprobs is not None
    assert done.logprobs[1] == ea.TokenLogprob(second, -0.5, ((first, -0.25),))


def test_ids_that_are_not_certain_are_an_error(
    remote: Load, server: FakeServer, checkpoint_directory: Path
) -> None:
    server.logprobs = [[("Hello", -0.5), ("nobody's token", -0.25)]] * 4
    with remote(checkpoint_directory, OWN) as model:
        with pytest.raises(ea.UnsupportedError, match=r"\"nobody's token\", which is no token.*'native'"):
            model.generate("hello", logprobs=1)
        assert model.generate("hello").text == "Hello, you there"
    with remote(own=OWN) as model, pytest.raises(ea.UnsupportedError, match="shows tokens as text"):
        model.generate("hello", logprobs=1)


def test_servers_and_options_without(remote: Load, server: FakeServer) -> None:
    off = pytest.raises(ea.UnsupportedError, match=r"FastDeployOptions\(logprobs=True\).*'native'")
    with remote() as model, off:
        model.generate("hi", logprobs=1)
    assert server.received == []
    with remote(own=OWN) as model:
        with pytest.raises(ea.ArgumentError, match="Logprobs is disabled"):
            model.generate("hi", logprobs=1)
        server.scenario = "ignores logprobs"
        with pytest.raises(ea.RemoteError, match="--enable-logprob"):
            model.generate("hi", logprobs=1)
        server.ids = None
        with pytest.raises(ea.RemoteError, match="--enable-logprob"):
            model.generate("hi", logprobs=1)
