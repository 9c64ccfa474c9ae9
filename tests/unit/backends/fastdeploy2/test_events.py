from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_accel.backends.fastdeploy import events as module
from ernie_accel.backends.fastdeploy.events import events
from ernie_accel.errors import RemoteError


def read(*pieces: bytes) -> list[str]:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def main() -> list[str]:
        return [event async for event in events(stream())]

    return asyncio.run(main())


def test_events() -> None:
    assert read(b"data: a\n\ndata:b\n\n") == ["a", "b"]
    assert read(b": comment\nevent: x\nid: 3\ndata: a\n\n") == ["a"]
    assert read(b"data: a\ndata: b\n\n") == ["a\nb"]
    assert read(b"data: a") == ["a"]
    assert read(b"data: a\n") == ["a"]
    assert read(b"\n\n\n") == []
    assert read() == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_ends_of_lines(end: bytes) -> None:
    assert read(b"data: a" + 2 * end + b"data: b" + 2 * end) == ["a", "b"]


TEXTS = st.lists(st.text(min_size=1).filter(lambda text: not {"\r", "\n"} & set(text)), max_size=5)


@given(TEXTS, st.data())
def test_any_cut_gives_the_same(texts: list[str], data: st.DataObject) -> None:
    whole = b"".join(b"data: " + text.encode() + b"\r\n\r\n" for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(*pieces) == texts


def test_what_is_no_text_or_far_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match="no UTF-8"):
        read(b"data: \xff\n\n")
    monkeypatch.setattr(module, "LONGEST_EVENT", 100)
    with pytest.raises(RemoteError, match="line of more than 100"):
        read(*[b"data: " + b"x" * 60] * 3)
    with pytest.raises(RemoteError, match="event of more than 100"):
        read(*[b"data: " + b"x" * 60 + b"\n"] * 3)
