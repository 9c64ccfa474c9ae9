"""Server-sent events, as far as OpenAI-compatible servers use them: bytes to the payloads of ``data`` lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing

from ernie_accel.errors import RemoteError

__all__ = ["events"]

LONGEST_EVENT = 16 << 20


async def events(stream: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """Yield the data of each event, its lines joined.

    Lines end with CR, LF or both and with nothing else: JSON may hold U+2028 and the like as they are. What follows
    the last empty line is an event too: servers have forgotten that line.

    Raises:
        RemoteError: An event is longer than any server has reason to send, or is no UTF-8.
    """
    data: list[bytes] = []
    async with aclosing(_lines(stream)) as lines:
        async for line in lines:
            if not line:
                if data:
                    yield _text(data)
                data = []
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                if sum(map(len, data)) > LONGEST_EVENT:
                    raise RemoteError(f"the server sent an event of more than {LONGEST_EVENT} bytes")
    if data:
        yield _text(data)


async def _lines(stream: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    held = b""
    async for piece in stream:
        held += piece
        if len(held) > LONGEST_EVENT and b"\n" not in piece:
            raise RemoteError(f"the server sent a line of more than {LONGEST_EVENT} bytes")
        # a CR at the very end may be the first half of CR LF
        whole, held = (held[:-1], b"\r") if held.endswith(b"\r") else (held, b"")
        *lines, rest = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        held = rest + held
        for line in lines:
            yield line
    if held:
        yield held.rstrip(b"\r")


def _text(data: list[bytes]) -> str:
    try:
        return b"\n".join(data).decode()
    except UnicodeDecodeError:
        raise RemoteError("the server sent an event that is no UTF-8") from None
