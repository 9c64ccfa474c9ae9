"""HTTP with a running server: the one file that knows httpx (extra ``remote``). Its errors leave as ours."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeVar

from ernie_accel.backends.fastdeploy.events import events
from ernie_accel.backends.fastdeploy.options import FastDeployOptions
from ernie_accel.errors import (
    ArgumentError,
    BackendUnavailableError,
    DeadlineError,
    ErnieAccelError,
    MissingExtraError,
    QueueFullError,
    RemoteError,
)

__all__ = ["Server"]

T = TypeVar("T")

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0
LONGEST_BODY = 1 << 20
"""Of an error, which is read as far as that."""
LONGEST_ANSWER = 16 << 20
NOT_BEGUN = (429, 503)
"""Status codes that say that nothing has been computed."""


class Server:
    """One server. Made in any thread, used in one event loop.

    Args:
        own: With an endpoint.

    Raises:
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, own: FastDeployOptions) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError.of("remote", "Talking to a server") from error
        self._httpx = httpx
        self._own = own
        self.endpoint = str(own.endpoint).rstrip("/").removesuffix("/v1")
        try:
            self._client = httpx.AsyncClient(
                headers={} if own.api_key is None else {"Authorization": f"Bearer {own.api_key}"},
                timeout=httpx.Timeout(own.read_timeout, connect=own.connect_timeout, pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
                verify=_trusted(own),
                proxy=own.proxy,
                trust_env=False,  # variables of the host program would decide otherwise
            )
        except (ValueError, OSError, httpx.InvalidURL) as error:
            raise ArgumentError(f"proxy={own.proxy!r}, ca_file={own.ca_file!r}: {error}") from error

    async def health(self) -> None:
        """Ask FastDeploy's ``/health``; its answers mean more than their codes say.

        Raises:
            BackendUnavailableError: The engine or its workers are not alive, or nobody answers in time.
        """
        status, _ = await self._look(f"{self.endpoint}/health")
        if status == 304:
            self._unavailable("its workers are not alive (/health answers 304)")
        if status == 404:
            self._unavailable("its engine is not healthy, or it is no FastDeploy (/health answers 404)")
        if status >= 400:
            self._unavailable(f"/health answers {status}")

    async def models(self) -> list[dict[str, Any]]:
        """Return what ``/v1/models`` lists.

        Raises:
            RemoteError: The key is refused, or the answer is none of the OpenAI API.
            BackendUnavailableError: Nobody answers in time.
        """
        url = f"{self.endpoint}/v1/models"
        status, body = await self._look(url)
        if status != 200:
            raise _refusal(status, body, url)
        try:
            found = json.loads(body)["data"]
            return [dict(model) for model in found if isinstance(model["id"], str)]
        except (ValueError, KeyError, TypeError):
            raise RemoteError(f"{url} gave no list of models: {_shown(body)}") from None

    async def metrics(self) -> str:
        """Return the text of ``/metrics``; "" if there is none, for whatever reason: metrics fail no call."""
        base = (self._own.metrics_endpoint or self.endpoint).rstrip("/")
        try:
            status, body = await self._get(f"{base}/metrics")
        except (self._httpx.HTTPError, ErnieAccelError):
            return ""
        return body.decode("utf-8", "replace") if status == 200 else ""

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[str]]:
        """Post a request and give its events; leaving the block closes the connection, which cancels it.

        A call that the server has not begun is made again, with pauses that grow.

        Raises:
            ErnieAccelError: Whatever goes wrong, also while the events are read.
        """
        response = await self._begin(f"{self.endpoint}{path}", body)
        try:
            async with aclosing(self._translated(response)) as stream:
                yield stream
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _begin(self, url: str, body: Mapping[str, Any]) -> Any:
        """Return a response whose body is still to be read."""
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        for attempt in range(self._own.retries + 1):
            last = attempt == self._own.retries
            request = self._client.build_request("POST", url, json=dict(body), headers=headers)
            try:
                response = await self._client.send(request, stream=True)
            except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
                if last:
                    raise self._broken(error, url) from error
                await _pause(attempt, None)
                continue
            except self._httpx.HTTPError as error:  # it may have begun
                raise self._broken(error, url) from error
            if response.status_code == 200:
                return response
            refusal = await self._read_refusal(response, url)
            if last or response.status_code not in NOT_BEGUN:
                raise refusal
            await _pause(attempt, response.headers.get("retry-after"))
        raise AssertionError("the last attempt returns or raises")

    async def _read_refusal(self, response: Any, url: str) -> ErnieAccelError:
        body = b""
        try:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LONGEST_BODY:
                    break
        except self._httpx.HTTPError:
            body = body or b"(its explanation broke off)"
        finally:
            await response.aclose()
        return _refusal(response.status_code, body, url)

    async def _translated(self, response: Any) -> AsyncGenerator[str, None]:
        try:
            async with aclosing(events(response.aiter_bytes())) as stream:
                async for event in stream:
                    yield event
        except self._httpx.HTTPError as error:
            raise self._broken(error, self.endpoint, begun=True) from error

    async def _look(self, url: str) -> tuple[int, bytes]:
        """A GET at the start; what fails there means that the server is not available."""
        try:
            return await self._again(lambda: self._get(url))
        except self._httpx.HTTPError as error:
            self._unavailable(_text(error))

    async def _get(self, url: str) -> tuple[int, bytes]:
        """Status and body, within the time for a look."""
        timeout = self._own.connect_timeout
        try:
            return await asyncio.wait_for(self._read(url), timeout)
        except asyncio.TimeoutError:
            raise self._httpx.ReadTimeout(f"no answer within {timeout:g} s") from None

    async def _read(self, url: str) -> tuple[int, bytes]:
        async with self._client.stream("GET", url) as response:
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LONGEST_ANSWER:
                    raise RemoteError(f"{url} answers with more than {LONGEST_ANSWER} bytes")
            return response.status_code, body

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make an idempotent call, again where the connection fails; not where nobody answered in time."""
        for attempt in range(self._own.retries):
            try:
                return await call()
            except self._httpx.TimeoutException:
                raise
            except self._httpx.TransportError:
                await _pause(attempt, None)
        return await call()

    def _unavailable(self, why: str) -> NoReturn:
        raise BackendUnavailableError(
            f"the server at {self.endpoint} is not ready: {why}; start it, or wait until it has loaded its model"
        )

    def _broken(self, error: Exception, url: str, *, begun: bool = False) -> ErnieAccelError:
        """Translate an error of the connection."""
        if isinstance(error, (self._httpx.ReadTimeout, self._httpx.WriteTimeout)):
            return DeadlineError(
                f"{url} sent nothing for {self._own.read_timeout:g} s; allow more with "
                "FastDeployOptions(read_timeout=...)"
            )
        when = "broke off in the middle of an answer" if begun else "could not be used"
        return RemoteError(f"the connection with {url} {when}: {_text(error)}")


def _trusted(own: FastDeployOptions) -> Any:
    """Whose certificates count. Reading those of the system takes a while, and is left out where there is no TLS."""
    import ssl

    if own.ca_file is not None:
        return ssl.create_default_context(cafile=own.ca_file)
    urls = (own.endpoint, own.metrics_endpoint, own.proxy)
    plain = all(url is None or url.startswith("http://") for url in urls)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True


async def _pause(attempt: int, wanted: str | None) -> None:
    """Wait before the next attempt: what the server asks for, else twice as long each time, by chance."""
    seconds = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0)
    if wanted is not None and wanted.isdecimal():
        seconds = float(wanted)
    await asyncio.sleep(min(seconds, LONGEST_PAUSE))


def _refusal(status: int, body: bytes, url: str) -> ErnieAccelError:
    """Translate a status code and what came with it."""
    why, meant = _message(body), _meant(status, body)
    if meant in (400, 413, 422):
        return ArgumentError(f"{url} refused the request ({status}): {why}")
    if status in (401, 403):
        return RemoteError(
            f"{url} refused the key ({status}): {why}; give the right one: FastDeployOptions(api_key=...)",
            status,
        )
    if meant == 408:
        return DeadlineError(f"the request waited too long at {url} ({status}): {why}; try again later")
    if status == 429:
        return QueueFullError(f"{url} has too many requests already (429): {why}; try again later")
    if status == 304:
        return RemoteError(f"the workers of {url} are not alive (304)", status)
    return RemoteError(f"{url} failed ({status}): {why}", status)


def _meant(status: int, body: bytes) -> int:
    """FastDeploy answers 500 whatever it is that its engine's front refuses; the kind of error says more."""
    if status != 500:
        return status
    try:
        error = json.loads(body)["error"]
        return _KINDS.get(error.get("type"), status)
    except (ValueError, KeyError, TypeError, AttributeError):
        return status


_KINDS = {"invalid_request_error": 400, "invalid_request": 400, "timeout_error": 408}


def _message(body: bytes) -> str:
    """Find the explanation: ``{"error": {"message": ...}}``, ``{"error": "..."}``, or whatever it is."""
    try:
        found = json.loads(body)
        error = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
        text = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        text = None
    return _shown(body) if text is None else str(text)[:500]


def _shown(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace") or "no explanation"


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
