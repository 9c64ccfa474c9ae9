"""A server as FastDeploy's documentation describes it, on a loopback port; ``scenario`` says what goes wrong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self

METRICS = """# HELP fastdeploy:num_requests_running running
fastdeploy:num_requests_running 3.0
fastdeploy:num_requests_waiting{model_name="ernie"} 1.0
fastdeploy:gpu_cache_usage_perc NaN
fastdeploy:prompt_tokens_total 1200.0
http_requests_total{method="POST"} 7.0
"""


class FakeServer:
    """Answers completions and chats with the words ``reply``, one an event, whose ids are ``ids``.

    Attributes:
        scenario: Of ``COMMON`` faults; "" for none. Each entry of ``scenarios`` is used for one call first.
        received: Bodies of posts, in order.
        headers: Of all calls, in order.
        closed: Set when a client went away in the middle of an answer.
        logprobs: For each word what is shown of it: the token, then the most probable ones; None: it was started
            without ``--enable-logprob``.
        says: What chats tell of a token beside its text.
    """

    def __init__(self) -> None:
        self.scenario = ""
        self.scenarios: list[str] = []
        self.health = 200
        self.key: str | None = None
        self.models: Any = [{"id": "ernie", "object": "model", "max_model_len": 4096}]
        self.reply = ["Hello", ",", " you", " there"]
        self.ids: list[int] | None = [11, 12, 13, 2]
        self.finish = "stop"
        self.deltas: list[dict[str, Any]] | None = None
        self.metrics = METRICS
        self.logprobs: list[list[tuple[str, float]]] | None = None
        self.says: Callable[[str], dict[str, Any]] = lambda token: {"bytes": list(token.encode())}
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.closed = threading.Event()
        self.release = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(_Handler):
            fake = server

        return Handler


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.fake
        fake.headers.append(dict(self.headers))
        if fake.scenario == "mute":
            fake.release.wait(20)
            return
        if self.path == "/health":
            self._answer(fake.health, b"")
        elif self.path == "/metrics":
            self._answer(200 if fake.metrics else 404, fake.metrics.encode())
        elif self.path == "/v1/models" and self._allowed():
            listed = fake.models
            body = json.dumps({"object": "list", "data": listed}) if isinstance(listed, list) else listed
            self._answer(200, body.encode())
        elif self.path != "/v1/models":
            self._answer(404, b'{"detail": "Not Found"}')

    def do_POST(self) -> None:
        fake = self.fake
        fake.headers.append(dict(self.headers))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.received.append(body)
        if not self._allowed():
            return
        if body.get("logprobs") and fake.logprobs is None and fake.scenario != "ignores logprobs":
            why = "Logprobs is disabled, please enable it in startup config."
            self._answer(400, json.dumps({"error": {"message": why, "param": "logprobs"}}).encode())
            return
        scenario = fake.scenarios.pop(0) if fake.scenarios else fake.scenario
        try:
            self._scene(scenario, body)
        except (BrokenPipeError, ConnectionResetError):
            fake.closed.set()

    def _scene(self, scenario: str, body: dict[str, Any]) -> None:
        refusals = {
            "busy": (429, {"error": {"message": "too many requests", "type": "overload"}}),
            "starting": (503, {"error": {"message": "not yet"}}),
            "waited": (408, {"error": {"message": "waited too long"}}),
            "bad field": (400, {"error": {"message": "top_p is wrong", "type": "x", "code": None}}),
            "bad field, says 500": (
                500,
                {"error": {"message": "top_p is wrong", "type": "invalid_request_error"}},
            ),
            "bad parameter, says 500": (
                500,
                {"error": {"message": "top_p is wrong", "type": "invalid_request"}},
            ),
            "waited, says 500": (500, {"error": {"message": "waited too long", "type": "timeout_error"}}),
            "strange 500": (500, {"error": {"message": "engine error", "type": ["x"]}}),
            "broken engine": (500, {"error": {"message": "engine error"}}),
            "dead workers": (304, None),
            "proxy page": (502, "<html>Bad gateway</html>"),
        }
        if scenario in refusals:
            status, answer = refusals[scenario]
            text = "" if answer is None else answer if isinstance(answer, str) else json.dumps(answer)
            self._answer(status, text.encode())
        elif scenario == "drops":
            self._cut()
        elif scenario == "silent":
            self.fake.release.wait(20)
        else:
            self._stream(scenario, body)

    def _stream(self, scenario: str, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path.endswith("/chat/completions")
        events = self._events(chat, body)
        for number, event in enumerate(events):
            if number == 2 and self._fault(scenario):
                return
            self._chunk(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
            if scenario == "slow":
                time.sleep(0.05)
        if scenario == "endless":
            self._endless(chat)
        if scenario != "no done":
            self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _fault(self, scenario: str) -> bool:
        """Play what goes wrong after two events; return whether the stream is over with that."""
        malformed = {
            "no json": b"data: {nonsense\n\n",
            "no choices": b'data: {"object": "x"}\n\n',
            "wrong text": b'data: {"choices": [{"index": 0, "text": 7}]}\n\n',
            "no utf-8": b"data: \xff\xfe\n\n",
            "error event": b'data: {"error": {"message": "worker died", "code": 500}}\n\n',
        }
        if scenario in malformed:
            self._chunk(malformed[scenario])
            self._chunk(b"")
            return True
        if scenario == "truncated":
            self._chunk(b"")
            return True
        if scenario == "cut":
            self._cut()
            return True
        if scenario == "stalls":
            self.fake.release.wait(20)
            return True
        return False

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _endless(self, chat: bool) -> None:
        while not self.fake.release.is_set():
            piece = {"delta": {"content": "x"}} if chat else {"text": "x", "completion_token_ids": [9]}
            self._chunk(b"data: " + json.dumps({"choices": [{"index": 0, **piece}]}).encode() + b"\n\n")
            time.sleep(0.005)

    def _events(self, chat: bool, body: dict[str, Any]) -> list[dict[str, Any]]:
        fake, events = self.fake, list[dict[str, Any]]()
        if chat:
            first = {"role": "assistant", "content": ""}
            events.append({"choices": [{"index": 0, "delta": first, "finish_reason": None}]})
            for number, delta in enumerate(fake.deltas or [{"content": word} for word in fake.reply]):
                entry = {"index": 0, "delta": delta, "finish_reason": None}
                events.append({"choices": [entry | self._logprobs(number, body, chat)]})
        else:
            for number, word in enumerate(fake.reply):
                choice: dict[str, Any] = {"index": 0, "text": word, "finish_reason": None}
                if fake.ids is not None and body.get("return_token_ids"):
                    choice["completion_token_ids"] = [fake.ids[number]]
                events.append({"choices": [choice | self._logprobs(number, body, chat)]})
        if self.fake.scenario != "endless":
            end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            events.append({"choices": [{"index": 0, **end, "finish_reason": fake.finish}]})
            usage: dict[str, Any] = {
                "prompt_tokens": 5,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 2},
            }
            events.append({"choices": [], "usage": usage})
        return events

    def _logprobs(self, number: int, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        """As FastDeploy's server: those of completions with the token itself among the most probable."""
        most = body.get("top_logprobs") if chat else body.get("logprobs")
        if not most or self.fake.logprobs is None:
            return {}
        own, *top = self.fake.logprobs[number][: most + 1]
        if not chat:
            found = {"tokens": [own[0]], "token_logprobs": [own[1]], "top_logprobs": [dict([own, *top])]}
            return {"logprobs": found}
        entry, *others = ({"token": t, "logprob": p, **self.fake.says(t)} for t, p in (own, *top))
        return {"logprobs": {"content": [{**entry, "top_logprobs": others}]}}

    def _allowed(self) -> bool:
        key = self.fake.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._answer(401, b'{"error": "Unauthorized"}')
        return False

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()
