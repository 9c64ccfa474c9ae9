"""The contract of ``ernie_accel.backends.engine``, as checks that any engine can be put through.

::

    print(run_engine_conformance(EngineSubject(open=lambda: MyEngine(...))))

An engine may compute anything: what is looked at is how requests begin, go on and end.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ernie_accel.backends.engine import Engine, EngineInfo, Handle, Request, alternative_seed
from ernie_accel.errors import (
    ClosedError,
    ContextLengthError,
    DeadlineError,
    ErnieAccelError,
    UnsupportedError,
)
from ernie_accel.testing.conformance.subject import require, require_error
from ernie_accel.types import Chunk, SamplingParams

__all__ = ["ENGINE_CHECKS", "EngineSubject"]

WAIT_SECONDS = 60.0
"""Longer than anything here may take."""
NEUTRAL: dict[str, Any] = {
    **{"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 5},
}
OUTCOMES = ("stop", "length", "cancelled", "failed")


@dataclass(frozen=True, kw_only=True)
class EngineSubject:
    """An engine under test.

    Attributes:
        open: Makes one; each check closes its own.
        prompt: Ids that it can continue.
        max_tokens: Most that a check asks for.
        params: How they are asked for; no field may be None that the engine needs.
    """

    open: Callable[[], Engine]
    prompt: tuple[int, ...] = (1, 2, 3)
    max_tokens: int = 4
    params: SamplingParams = field(default_factory=lambda: SamplingParams(**NEUTRAL))

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Open an engine that is closed after the block."""
        engine = self.open()
        try:
            yield engine
        finally:
            engine.close()

    def request(self, *, n: int = 1, max_tokens: int | None = None, deadline: float = math.inf) -> Request:
        """Return a request for the prompt."""
        params = replace(self.params, n=n, max_tokens=max_tokens or self.max_tokens)
        return Request(token_ids=self.prompt, params=params, deadline=deadline)


def check_engine_info(subject: EngineSubject) -> None:
    """Info says what it must, and is the same each time."""
    with subject.engine() as engine:
        info = engine.info
        require(isinstance(info, EngineInfo), "info must be an EngineInfo")
        require(bool(info.backend), "info.backend must be a name")
        require(info.max_context >= 1, "info.max_context must be at least 1")
        require(info.max_seed >= 0, "info.max_seed must be at least 0")
        require(engine.capabilities >= info.capabilities, "capabilities must hold those of info")
        require(engine.info == info, "info must not change")


def check_results(subject: EngineSubject) -> None:
    """A completion has its parts, and a handle is done after it."""
    with subject.engine() as engine:
        handle = engine.submit(subject.request())
        done = handle.result(WAIT_SECONDS)
        require(handle.done, "a handle with a result must be done")
        require(done.finish_reason in ("stop", "length"), f"finish_reason is {done.finish_reason!r}")
        require(done.prompt_token_ids == subject.prompt, "prompt_token_ids must be the prompt")
        require(done.seed == subject.params.seed, "seed must be the request's")
        require(done.usage.prompt_tokens == len(subject.prompt), "usage.prompt_tokens must be the prompt's")
        require(done.usage.completion_tokens <= subject.max_tokens, "more tokens than max_tokens")
        require(handle.result(0.0) == done, "a second result must be the same")


def check_streams(subject: EngineSubject) -> None:
    """Pieces together are the whole; the last has the reason, and then comes StopIteration."""
    with subject.engine() as engine:
        handle = engine.submit(subject.request())
        chunks = list(handle)
        done = handle.result(WAIT_SECONDS)
        require(bool(chunks), "a stream must have a last piece")
        _same_whole(chunks, done.text, done.token_ids)
        reasons = [chunk.finish_reason for chunk in chunks]
        require(reasons[-1] == done.finish_reason, "the last piece must have the finish reason")
        require(reasons[:-1] == [None] * (len(reasons) - 1), "only the last piece may have a finish reason")
        require(handle.exhausted, "a handle must be exhausted after its last piece")
        require(handle.take() is None, "take must give None after the last piece")


def _same_whole(chunks: Sequence[Chunk], text: str, ids: tuple[int, ...]) -> None:
    require("".join(chunk.text for chunk in chunks) == text, "texts of the pieces must be the text")
    require(tuple(i for chunk in chunks for i in chunk.token_ids) == ids, "ids of the pieces must be the ids")


def check_alternatives(subject: EngineSubject) -> None:
    """Of n completions the first is what n=1 gives, and each records the seed that gives it again."""
    with subject.engine() as engine:
        one = engine.submit(subject.request()).result(WAIT_SECONDS)
        several = engine.submit(subject.request(n=3)).result(WAIT_SECONDS)
        require(len(several.alternatives) == 2, f"n=3 gave {len(several.alternatives)} alternatives")
        require(several.seed == one.seed, "the first of several must have the seed of n=1")
        seed = subject.params.seed or 0
        wanted = [alternative_seed(seed, index, engine.info.max_seed) for index in range(3)]
        found = [several.seed, *(other.seed for other in several.alternatives)]
        require(found == wanted, f"seeds are {found}, must be {wanted}")


def check_many(subject: EngineSubject) -> None:
    """Requests of several threads, and those that begin together, all end."""
    with subject.engine() as engine:
        together = engine.submit_all([subject.request() for _ in range(4)])
        handles: list[Handle] = []
        threads = [
            threading.Thread(target=lambda: handles.append(engine.submit(subject.request())))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        require(len(handles) == 8, "submit must return in every thread")
        for handle in [*together, *handles]:
            handle.result(WAIT_SECONDS)


def check_asked_logprobs(subject: EngineSubject) -> None:
    """Log-probabilities that are asked for belong to the tokens, or the request is refused with UnsupportedError."""
    with subject.engine() as engine:
        request = subject.request()
        require(
            engine.submit(request).result(WAIT_SECONDS).logprobs is None, "logprobs that nobody asked for"
        )
        try:
            handle = engine.submit(replace(request, params=replace(request.params, logprobs=2)))
        except UnsupportedError:
            return
        chunks, done = list(handle), handle.result(WAIT_SECONDS)
        found = done.logprobs or ()
        require(
            [one.token_id for one in found] == list(done.token_ids), "logprobs must be those of token_ids"
        )
        require(
            [one for chunk in chunks for one in chunk.logprobs or ()] == list(found), "pieces lack logprobs"
        )
        for one in found:
            values = [value for _, value in one.top]
            require(len(values) == 2, f"{len(values)} alternatives, and 2 were asked for")
            require(values == sorted(values, reverse=True), "alternatives must be best first")


def check_cancel(subject: EngineSubject) -> None:
    """A request that is cancelled ends, with what it has; cancelling again or after the end is harmless."""
    with subject.engine() as engine:
        handle = engine.submit(subject.request(max_tokens=1000))
        handle.cancel()
        handle.cancel()
        done = handle.result(WAIT_SECONDS)
        require(done.finish_reason in ("cancelled", "stop", "length"), f"ended with {done.finish_reason!r}")
        handle.cancel()
        require(handle.result(0.0).finish_reason == done.finish_reason, "the end must not change")
        engine.submit(subject.request()).result(WAIT_SECONDS)


def check_deadline(subject: EngineSubject) -> None:
    """A request whose time is over fails with DeadlineError, and the next one works."""
    with subject.engine() as engine:
        handle = engine.submit(subject.request(max_tokens=1000, deadline=time.monotonic()))
        with require_error(DeadlineError, "a request whose deadline is over"):
            handle.result(WAIT_SECONDS)
        engine.submit(subject.request()).result(WAIT_SECONDS)


def check_notices(subject: EngineSubject) -> None:
    """``notify`` calls back at the end, and at once where that is over; ``notify_room`` where there is room."""
    with subject.engine() as engine:
        handle = engine.submit(subject.request())
        for what in ("before", "after"):
            rung = threading.Event()
            handle.notify(rung.set, done=True)
            require(rung.wait(WAIT_SECONDS), f"notify was not called {what} the end")
            handle.result(WAIT_SECONDS)
        rung = threading.Event()
        engine.notify_room(subject.request(), rung.set)
        require(rung.wait(WAIT_SECONDS), "notify_room was not called although nobody waits")


def check_long_prompts(subject: EngineSubject) -> None:
    """A prompt beyond the context is refused, where one can be written down."""
    with subject.engine() as engine:
        if engine.info.max_context > 1 << 20:
            return
        prompt = subject.prompt[:1] * (engine.info.max_context + 1)
        with require_error(ContextLengthError, "check of a prompt that is too long"):
            engine.check(prompt)
        with require_error(ContextLengthError, "a prompt that is too long"):
            engine.submit(replace(subject.request(), token_ids=prompt))


def check_readings(subject: EngineSubject) -> None:
    """What is no capability raises UnsupportedError with the names of backends that can."""
    with subject.engine() as engine:
        calls: dict[str, Callable[[], object]] = {
            "logits": lambda: engine.logits(subject.prompt),
            "score": lambda: engine.score([subject.prompt]),
            "hidden": lambda: engine.embed([subject.prompt]),
            "profile": lambda: engine.profile(False),
        }
        for capability, call in calls.items():
            if capability in engine.capabilities:
                call()
                continue
            with require_error(UnsupportedError, capability):
                call()


def check_metrics(subject: EngineSubject) -> None:
    """Requests and tokens are counted."""
    with subject.engine() as engine:
        handles = [engine.submit(subject.request()) for _ in range(3)]
        done = [handle.result(WAIT_SECONDS) for handle in handles]
        counters = engine.metrics().counters
        for name in (*(f"requests_{outcome}" for outcome in OUTCOMES), "prompt_tokens", "generated_tokens"):
            require(name in counters, f"metrics lack the counter {name}")
        ended = sum(counters[f"requests_{outcome}"] for outcome in OUTCOMES)
        require(ended == 3, f"{ended} requests are counted, and 3 ended")
        written = sum(one.usage.completion_tokens for one in done)
        require(counters["generated_tokens"] == written, "generated_tokens must be those of the results")


def check_engine_close(subject: EngineSubject) -> None:
    """Whatever is under way ends, every later call raises ClosedError, and a second close is harmless."""
    engine = subject.open()
    handle = engine.submit(subject.request(max_tokens=1000))
    engine.close()
    engine.close()
    try:
        handle.result(WAIT_SECONDS)
    except ClosedError:
        pass
    except ErnieAccelError as error:
        raise AssertionError(f"close ended a request with {type(error).__name__}") from error
    for call in (lambda: engine.submit(subject.request()), lambda: engine.check((1,)), engine.metrics):
        with require_error(ClosedError, "a call after close"):
            call()


ENGINE_CHECKS: tuple[Callable[[EngineSubject], None], ...] = (
    check_engine_info,
    check_results,
    check_streams,
    check_alternatives,
    check_many,
    check_asked_logprobs,
    check_cancel,
    check_deadline,
    check_notices,
    check_long_prompts,
    check_readings,
    check_metrics,
    check_engine_close,
)
"""Every check."""
