"""Writes one completion: draws tokens and watches for the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest

from ernie_accel.backends.base import Select, Step, StepResult
from ernie_accel.bell import Bell
from ernie_accel.engine.history import History
from ernie_accel.engine.job import Fork, Job
from ernie_accel.engine.metrics import Recorder
from ernie_accel.engine.output import Output
from ernie_accel.engine.request import Request, alternative_seed
from ernie_accel.engine.sampling import select_rows
from ernie_accel.engine.speculation import Speculation
from ernie_accel.engine.structured import Guide
from ernie_accel.stop import Decoder
from ernie_accel.system import peak_memory
from ernie_accel.types import Completion, FinishReason, SamplingParams, Timings, TokenLogprob, Usage

__all__ = ["Limits", "Writer"]

MOST_IDS = (1 << 31) - 1
"""More than any vocabulary has; a larger ``top_k`` means no more, and Runners need not hold it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the model sets for every request.

    Attributes:
        max_context: Largest length of prompt and output together.
        vocab_limit: Ids from here on are never drawn; 0 means no limit.
        selects: Whether the Runner draws inside the step.
    """

    max_context: int
    vocab_limit: int
    selects: bool


class Writer(Job):
    """One alternative of one request.

    Attributes:
        output: What it has written.
        progress: Rung when there is more of that, and at the end.
        followers: Other alternatives of the same prompt, which wait for this one to compute it and then share it.
    """

    def __init__(
        self, request: Request, limits: Limits, decoder: Decoder | None, recorder: Recorder, index: int = 0
    ) -> None:
        super().__init__(list(request.token_ids), priority=request.priority, deadline=request.deadline)
        self.kind = "alternative" if index else "request"
        self.arrived = request.arrival
        self.output = Output(decoder, request.params.stop)
        self.progress = Bell()
        self.followers: list[Writer] = []
        self._leader: Writer | None = None
        self._request = request
        self._recorder = recorder
        self._selects = limits.selects
        self._prompt = len(self.tokens)
        self._largest = min(self._prompt + request.params.max_tokens, limits.max_context)
        self._select = _select(request, limits, alternative_seed(request.params.seed or 0, index))
        self._history = History(self.tokens) if _penalizes(self._select) else None
        self.guide = Guide.of(request.constraint, skip=not request.params.logprobs)
        self._drafts: list[int] = []
        self._drafted = self._accepted = 0
        self._reused = 0
        self._first = self._last = 0.0
        if self._prompt >= self._largest:
            self._end("length")
        elif self.guide is not None:
            self._begin_with(self.guide.begin())
        self._given = len(self.tokens)

    def follow(self, leader: Writer) -> None:
        """Share the prompt that ``leader`` computes. The last token of it is left: each draws after it for itself."""
        if self._prompt > 1 and not self.done:
            self._leader = leader
            leader.followers.append(self)

    def speculate(self, shared: Speculation) -> None:
        """Draft from now on, unless what a row may draw depends on whether the drafts before it are right.

        That is so under a mask, and with counts of what was written. A repetition penalty looks at the set of ids that
        occurred, to which drafts add nothing as long as each has occurred: ``drafts`` ends before another.
        """
        counts = self._select.presence_penalty != 0.0 or self._select.frequency_penalty != 0.0
        if self.guide is None and not counts:
            self.drafter = shared.drafter(self.tokens, self._prompt)

    @property
    def next_count(self) -> int:
        """All that is pending; before followers have forked, all but the last token of the prompt."""
        short = self._prompt - 1 - self.computed
        waits = short > 0 and any(f.seq is None and not f.done for f in self.followers)
        return short if waits else self.pending

    @property
    def held_up(self) -> bool:
        """Whether the leader is still computing the prompt."""
        leader = self._leader
        return leader is not None and not leader.done and leader.computed < self._prompt - 1

    @property
    def shared(self) -> Fork | None:
        """The prompt without its last token, in the leader's sequence, for a follower that has drawn nothing yet."""
        leader = self._leader
        if leader is None or leader.seq is None or len(self.tokens) > self._given:
            return None
        return Fork(leader.seq, self._prompt - 1)

    @property
    def shareable(self) -> int:
        """All but the last token, whose answer is needed."""
        return len(self.tokens) - 1

    @property
    def draft_room(self) -> int:
        """Guesses come from the second token on, and leave room for the one that is drawn after the last."""
        return self._largest - len(self.tokens) - 1 if self.drafter is not None and self._first else 0

    def drafts(self, most: int) -> int:
        """Guess up to ``most`` tokens; return how many there are."""
        most = min(most, self.draft_room)
        self._drafts = self.drafter.drafts(most) if self.drafter is not None and self._first else []
        if self._history is not None:
            self._drafts = list(takewhile(self._history.holds, self._drafts))
        return len(self._drafts)

    def step(self, count: int, *, late: bool = False) -> Step:
        """Ask for a token if this reaches the end of what is known, and for one after each draft, else for nothing."""
        assert self.seq is not None, "the scheduler opens a sequence before it asks for a step"
        ids = self.tokens[self.computed : self.computed + count]
        if count < self.pending:
            return Step(self.seq, ids, rows=0)
        drafts = self._drafts[: count - self.pending]
        if self._selects:
            select = None if late else self.select()
            return Step(self.seq, ids + drafts, rows=1 + len(drafts), output="select", select=select)
        return Step(self.seq, ids + drafts, rows=1 + len(drafts))

    def select(self) -> Select:
        """Return how the next token is drawn; raises ArgumentError where its structure allows none."""
        select = self._select
        if self._history is not None:
            select = replace(select, seen=self._history.seen, counts=self._history.counts)
        return select if self.guide is None else replace(select, mask=self.guide.mask())

    def accept(self, count: int, result: StepResult) -> None:
        """Take the token, if one was asked for, and those after drafts that were right."""
        drafted = count - self.pending
        self.computed += min(count, self.pending)
        if drafted == 0:
            self._draw(result)
        elif drafted > 0:
            self._check(result, self._drafts[:drafted])

    def cancel(self) -> None:
        """End with the reason "cancelled"."""
        self._end("cancelled")

    def finish(self) -> None:
        """End, and wake whoever waits for it."""
        super().finish()
        self.progress.ring()

    def completion(self) -> Completion:
        """Return what was written so far; whole once the job is done."""
        output, text, parse = tuple(self.output.ids), self.output.text(), self._request.parse
        return Completion(
            text=text,
            token_ids=output,
            finish_reason=self.output.reason or "cancelled",
            usage=Usage(
                prompt_tokens=self._prompt, completion_tokens=len(output), cached_tokens=self._reused
            ),
            timings=self._timings(len(output)),
            seed=self._select.seed,
            prompt_token_ids=self._request.token_ids,
            logprobs=tuple(self.output.logprobs) if self._request.params.logprobs else None,
            reply=None if parse is None else parse(output, text),
        )

    def _begin_with(self, ids: tuple[int, ...]) -> None:
        """Take tokens that need no drawing, perhaps all there are."""
        self._extend(ids)
        if self.done:
            self._first = self._last = time.perf_counter()

    def _draw(self, result: StepResult) -> None:
        """Take what was drawn, and what the structure forces after it."""
        token, logprob = self._drawn(result, 0)
        following: tuple[int, ...] = ()
        if self.guide is not None and token not in self._request.stop_ids:
            following = self.guide.take(token)
        self._take((token, *following), logprob)

    def _check(self, result: StepResult, drafts: list[int]) -> None:
        """Take what was drawn row by row, as long as the drafts before a row are right."""
        rows = [self._drawn(result, 0)]
        for row, draft in enumerate(drafts, 1):
            if rows[-1][0] != draft:
                break
            rows.append(self._drawn(result, row))
        known = len(self.tokens)
        self._take([token for token, _ in rows], *[logprob for _, logprob in rows])
        accepted = min(len(rows) - 1, len(self.tokens) - known)
        self.computed = min(known + accepted, len(self.tokens) - 1)
        self._drafted += len(drafts)
        self._accepted += accepted
        self._recorder.checked(len(drafts), accepted)

    def _drawn(self, result: StepResult, row: int) -> tuple[int, TokenLogprob | None]:
        """Return what is drawn after all tokens and ``row`` drafts."""
        if result.token_ids is not None:
            return result.token_ids[row], result.logprobs[row] if result.logprobs else None
        assert result.logits is not None, "a Runner without select answers with logits"
        position = len(self.tokens) + row
        ids, logprobs = select_rows(result.logits[row : row + 1], self.select(), position)
        return ids[0], logprobs[0] if logprobs else None

    def _take(self, ids: Sequence[int], *logprobs: TokenLogprob | None) -> None:
        """Append tokens, up to the first that ends the request."""
        before, known = self._last, len(self.tokens)
        self._last = time.perf_counter()  # first: whoever is woken by the end reads it
        if not self._first:
            self._first, self._reused = self._last, min(self.cached, self._prompt)
        self._extend(ids, logprobs)
        taken = len(self.tokens) - known
        if before:
            self._recorder.next_tokens(taken, self._last - before)
        else:
            self._recorder.first_token(self._last - self.arrived)
            self._recorder.next_tokens(taken - 1, 0.0)

    def _extend(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None] = ()) -> None:
        room = self._largest - len(self.tokens)
        for token_id, logprob in zip_longest(ids[:room], logprobs[:room]):
            self.tokens.append(token_id)
            if logprob is not None:
                self.output.logprobs.append(logprob)
            if self._history is not None:
                self._history.add(token_id)
            mark = token_id in self._request.stop_ids
            if self.output.append(token_id, mark=mark) or mark:
                self._end("stop")
                return
        if self.guide is not None and self.guide.finished and len(ids) <= room:
            self._end("stop")
        elif len(self.tokens) >= self._largest:
            self._end("length")
        elif ids:
            self.output.publish()
            self.progress.ring()

    def _end(self, reason: FinishReason) -> None:
        self.output.publish(reason)
        self.outcome = reason
        self.finish()

    def _timings(self, generated: int) -> Timings:
        started = self.started or self.arrived
        prefill = self._first - started if generated else 0.0
        decode = self._last - self._first
        computed = self._prompt - self._reused
        return Timings(
            queue_seconds=started - self.arrived,
            time_to_first_token=self._first - self.arrived if generated else 0.0,
            prefill_seconds=prefill,
            decode_seconds=decode,
            prefill_tokens_per_second=computed / prefill if prefill > 0 else 0.0,
            decode_tokens_per_second=(generated - 1) / decode if decode > 0 else 0.0,
            peak_memory=peak_memory(),
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )


def _select(request: Request, limits: Limits, seed: int) -> Select:
    p: SamplingParams = request.params
    return Select(
        temperature=p.temperature or 0.0,
        top_k=min(p.top_k or 0, MOST_IDS),
        top_p=1.0 if p.top_p is None else p.top_p,
        min_p=p.min_p or 0.0,
        repetition_penalty=1.0 if p.repetition_penalty is None else p.repetition_penalty,
        presence_penalty=p.presence_penalty or 0.0,
        frequency_penalty=p.frequency_penalty or 0.0,
        vocab_limit=limits.vocab_limit,
        logprobs=p.logprobs or -1,
        seed=seed,
    )


def _penalizes(select: Select) -> bool:
    return (
        select.repetition_penalty != 1.0 or select.presence_penalty != 0.0 or select.frequency_penalty != 0.0
    )
