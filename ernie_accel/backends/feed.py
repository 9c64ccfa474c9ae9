"""A completion that arrives in pieces from somewhere else: one thread feeds it, any number read."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ernie_accel.backends.engine import Request
from ernie_accel.bell import Bell
from ernie_accel.metrics import SECONDS, Metrics, Series
from ernie_accel.reply import Reply, ToolCall
from ernie_accel.stop import TextTail
from ernie_accel.system import peak_memory
from ernie_accel.types import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage

__all__ = ["Feed", "Piece", "Tally"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came next.

    Attributes:
        text: New text, without what came before.
        token_ids: New ids, where they are known; the end token, if one was drawn, is the last of all.
        finish_reason: With the last piece, why it ended.
        usage: Tokens as the other side counts them; counted here where ids are known.
        thinking: New text of thoughts, where the other side tells them from the answer; no part of the text.
        tool_calls: Of the answer, where the other side reads them.
        logprobs: Where they were asked for, one for each of ``token_ids``.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Tally:
    """Counts requests, tokens and waits; one thread counts, any may take a ``snapshot``."""

    def __init__(self) -> None:
        outcomes = [f"requests_{name}" for name in ("stop", "length", "cancelled", "failed")]
        tokens = ("prompt_tokens", "cached_tokens", "generated_tokens")
        self.counters = dict.fromkeys([*outcomes, "alternatives", *tokens], 0)
        names = ("queue", "time_to_first_token", "inter_token", "request")
        self._series = {f"{name}_seconds": Series(SECONDS) for name in names}

    def note(self, name: str, seconds: float, times: int = 1) -> None:
        """Count a wait, or several of the same length."""
        for _ in range(times):
            self._series[f"{name}_seconds"].note(seconds)

    def snapshot(self, gauges: dict[str, int]) -> Metrics:
        """Return everything counted so far."""
        histograms = {name: series.histogram() for name, series in self._series.items()}
        return Metrics(counters=dict(self.counters), gauges=gauges, histograms=histograms)


class Feed:
    """One completion of one request.

    Text is cut before the first stop string, and what may become one is held back, whatever the other side does about
    stop strings itself.

    Args:
        request: What was asked.
        seed: Of this completion.
        tally: Counts it.
        index: Of this completion among those of the request, of which the first stands for the request in counts.

    Attributes:
        request: What was asked.
        seed: Of this completion.
        error: Why it failed, None if it didn't.
        done: Nothing more will come.
        progress: Rung with each piece, and at the end.
        ended: Rung at the end.
    """

    def __init__(self, request: Request, seed: int, tally: Tally, index: int = 0) -> None:
        self.request = request
        self.seed = seed
        self.error: BaseException | None = None
        self.done = False
        self.progress = Bell()
        self.ended = Bell()
        self._tally = tally
        self._alternative = index > 0
        self._tail = TextTail(None, tuple(request.params.stop))
        self._chunks: list[Chunk] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._thoughts: list[str] = []
        self._calls: tuple[ToolCall, ...] = ()
        self._usage: Usage | None = None
        self._reason: FinishReason | None = None
        self._started = self._first = self._last = 0.0

    @property
    def output(self) -> Feed:
        """The pieces; part of ``handle.Writing``."""
        return self

    @property
    def count(self) -> int:
        """Tokens that came, or pieces where nobody says which tokens they are."""
        return len(self._ids) or len(self._chunks)

    @property
    def reason(self) -> FinishReason | None:
        """Why it ended, None before."""
        return self._reason

    def chunks(self) -> int:
        """Return how many chunks there are so far."""
        return len(self._chunks)

    def chunk(self, index: int) -> Chunk | None:
        """Return chunk ``index``, None if it is not there yet."""
        return self._chunks[index] if index < len(self._chunks) else None

    def start(self) -> None:
        """Note that the request is no longer in a queue of ours."""
        self._started = time.perf_counter()
        if not self._alternative:
            self._tally.note("queue", self._started - self.request.arrival)

    def add(self, piece: Piece) -> bool:
        """Take what came next; return whether that was the end, by the other side's word or by a stop string."""
        if self.done:
            return True
        self._usage = piece.usage or self._usage
        self._calls += piece.tool_calls
        if piece.thinking:
            self._thoughts.append(piece.thinking)
        self._ids += piece.token_ids
        self._logprobs += piece.logprobs
        text = self._tail.feed(piece.text)
        reason: FinishReason | None = "stop" if self._tail.stopped else piece.finish_reason
        if piece.text or piece.token_ids or piece.thinking:
            self._note_time(max(1, len(piece.token_ids)))
        self._publish(text, piece.token_ids, reason, piece.logprobs)
        return self.done

    def cancel(self) -> None:
        """End with the reason "cancelled", keeping what there is."""
        if not self.done:
            self._publish("", (), "cancelled")

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.done:
            self.error = error
            self._finish("failed")

    def completion(self) -> Completion:
        """Return what came so far; whole once it is done."""
        request, text, ids = self.request, self._text(), tuple(self._ids)
        usage = self._counted()
        return Completion(
            text=text,
            token_ids=ids,
            finish_reason=self._reason or "cancelled",
            usage=usage,
            timings=self._timings(usage),
            seed=self.seed,
            prompt_token_ids=request.token_ids,
            logprobs=self._asked(tuple(self._logprobs)),
            reply=self._reply(ids, text),
        )

    def _text(self) -> str:
        return "".join(chunk.text for chunk in self._chunks)

    def _asked(self, logprobs: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...] | None:
        return logprobs if self.request.params.logprobs else None

    def _publish(
        self,
        text: str,
        ids: tuple[int, ...],
        reason: FinishReason | None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        if reason is not None:
            text += self._tail.flush()
        if text or ids or reason is not None:
            self._chunks.append(
                Chunk(text=text, token_ids=ids, logprobs=self._asked(logprobs), finish_reason=reason)
            )
        if reason is None:
            self.progress.ring()
            return
        self._reason = reason
        self._finish(reason)

    def _finish(self, outcome: str) -> None:
        self.done = True
        usage, counters = self._counted(), self._tally.counters
        if self._alternative:
            counters["alternatives"] += 1
        else:
            counters[f"requests_{outcome}"] += 1
            self._tally.note("request", time.perf_counter() - self.request.arrival)
        counters["prompt_tokens"] += usage.prompt_tokens
        counters["cached_tokens"] += usage.cached_tokens
        counters["generated_tokens"] += usage.completion_tokens
        self.ended.ring()
        self.progress.ring()

    def _note_time(self, tokens: int) -> None:
        now = time.perf_counter()
        if self._first:
            self._tally.note("inter_token", (now - self._last) / tokens, tokens)
        else:
            self._first = now
            self._tally.note("time_to_first_token", now - self.request.arrival)
        self._last = now

    def _counted(self) -> Usage:
        """Tokens, counted here as far as ids are known: servers have miscounted those of streams."""
        given = self._usage or Usage(prompt_tokens=0, completion_tokens=0)
        return Usage(
            prompt_tokens=len(self.request.token_ids) or given.prompt_tokens,
            completion_tokens=len(self._ids) or given.completion_tokens,
            cached_tokens=given.cached_tokens,
        )

    def _timings(self, usage: Usage) -> Timings:
        began = self.request.arrival
        started = self._started or began
        prefill = self._first - started if self._first else 0.0
        decode = self._last - self._first
        computed = usage.prompt_tokens - usage.cached_tokens
        return Timings(
            queue_seconds=started - began,
            time_to_first_token=self._first - began if self._first else 0.0,
            prefill_seconds=prefill,
            decode_seconds=decode,
            prefill_tokens_per_second=computed / prefill if prefill > 0 else 0.0,
            decode_tokens_per_second=max(0, usage.completion_tokens - 1) / decode if decode > 0 else 0.0,
            peak_memory=peak_memory(),
        )

    def _reply(self, ids: tuple[int, ...], text: str) -> Reply | None:
        if self.request.parse is not None:
            return self.request.parse(ids, text)
        if self.request.turn is None:
            return None
        thinking = "".join(self._thoughts) or None
        return Reply(content=text, thinking=thinking, tool_calls=self._calls, text=text)
