from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from ernie_accel.backends.base import Step, StepResult
from ernie_accel.engine.request import Request, alternative_seed
from ernie_accel.engine.stream import TokenStream
from ernie_accel.errors import ArgumentError, BackendError, CapacityError, ClosedError, ContextLengthError
from ernie_accel.types import Completion

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]


def texts(stream: TokenStream) -> str:
    return "".join(chunk.text for chunk in stream)


def plain(completion: Completion) -> tuple[Any, ...]:
    return completion.text, completion.token_ids, completion.finish_reason, completion.logprobs


def test_a_reply_ends_with_its_end_token(bench: Bench, request_of: Ask) -> None:
    done = bench.engine(reply="abc").submit(request_of()).result()
    assert (done.text, done.token_ids, done.finish_reason) == ("abc", (3, 4, 5, 2), "stop")
    assert done.prompt_token_ids == (5, 6, 7)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 4)
    assert bench.open_sequences() == 0


def test_max_tokens_ends_with_length(bench: Bench, request_of: Ask) -> None:
    done = bench.engine(reply="abcdef").submit(request_of(max_tokens=2)).result()
    assert (done.text, done.finish_reason) == ("ab", "length")


def test_an_end_token_that_is_ignored_is_a_token_like_others(bench: Bench, request_of: Ask) -> None:
    done = bench.engine(reply="abc").submit(request_of(end=False, max_tokens=10)).result()
    assert len(done.token_ids) == 10
    assert done.finish_reason == "length"


def test_the_context_ends_a_completion(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_context=8)
    done = engine.submit(request_of([3] * 5, max_tokens=100)).result()
    assert (len(done.token_ids), done.finish_reason) == (3, "length")
    full = engine.submit(request_of([3] * 8)).result()
    assert (full.token_ids, full.text, full.finish_reason) == ((), "", "length")
    with pytest.raises(ContextLengthError, match="9 tokens do not fit the context of 8"):
        engine.submit(request_of([3] * 9))


def test_chunks_are_the_text(bench: Bench, request_of: Ask) -> None:
    stream = TokenStream(bench.engine(reply="abcde").submit(request_of(stop=("cdx", "de"))))
    chunks = list(stream)
    done = stream.result()
    assert "".join(chunk.text for chunk in chunks) == done.text == "abc"
    assert [i for chunk in chunks for i in chunk.token_ids] == list(done.token_ids) == [3, 4, 5, 6, 7]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, None, "stop"]
    assert [chunk.text for chunk in chunks] == ["a", "b", "", "", "c"]


def test_half_characters_are_held_back(bench: Bench, request_of: Ask) -> None:
    stream = TokenStream(bench.engine(reply=[3, 63, 63, 63]).submit(request_of()))
    assert [chunk.text for chunk in stream] == ["a", "", "é", "", "\ufffd"]


def test_a_stop_token_is_a_token_and_no_text(bench: Bench, request_of: Ask) -> None:
    done = bench.engine(reply="abcd").submit(request_of(stop_token_ids=(5,))).result()
    assert (done.text, done.token_ids, done.finish_reason) == ("ab", (3, 4, 5), "stop")


@pytest.mark.parametrize("select", [False, True])
def test_logprobs_come_with_every_token(bench: Bench, request_of: Ask, select: bool) -> None:
    engine = bench.engine(reply="ab", certainty=1.0, select=select)
    done = engine.submit(request_of(logprobs=2)).result()
    assert done.logprobs is not None
    assert [entry.token_id for entry in done.logprobs] == [3, 4, 2]
    assert all(len(entry.top) == 2 and entry.top[0][1] == entry.logprob for entry in done.logprobs)
    chunks = list(TokenStream(engine.submit(request_of(logprobs=2))))
    assert [chunk.logprobs for chunk in chunks] == [(entry,) for entry in done.logprobs]


def test_drawing_inside_the_step_gives_the_same_tokens(bench: Bench, request_of: Ask) -> None:
    def ask(select: bool) -> Completion:
        params = {
            "temperature": 1.5,
            "seed": 11,
            "logprobs": 1,
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.2,
        }
        return bench.engine(certainty=0.3, select=select).submit(request_of(max_tokens=20, **params)).result()

    assert plain(ask(True)) == plain(ask(False))


def test_penalties_see_prompt_and_output(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="aaaa", select=True)
    engine.submit(request_of([9, 9, 4], max_tokens=3, presence_penalty=0.5)).result()
    selects = [step.select for batch in bench.runner.steps for step in batch]
    seen = [(select.seen.tolist(), select.counts.tolist()) for select in selects if select]  # type: ignore[union-attr]
    assert seen[0] == ([4, 9], [0, 0])
    assert seen[1] == ([3, 4, 9], [1, 0, 0])


def test_padding_rows_are_never_drawn(bench: Bench, request_of: Ask) -> None:
    done = bench.engine(reply=[40, 41], vocab_limit=40).submit(request_of(max_tokens=4)).result()
    assert all(i < 40 for i in done.token_ids)


def test_a_prompt_goes_in_chunks(bench: Bench, request_of: Ask) -> None:
    bench.engine(reply="a", max_step_tokens=16).submit(request_of([5] * 40)).result()
    assert [(len(batch[0].token_ids), batch[0].rows) for batch in bench.runner.steps] == [
        (16, 0),
        (16, 0),
        (8, 1),
        (1, 1),
    ]


def test_requests_share_steps_and_do_not_change_each_other(bench: Bench, request_of: Ask) -> None:
    prompts = [[5, 6], [7] * 20, [8], [9, 10, 11]]
    params = {"temperature": 1.0, "max_tokens": 12}
    alone = [bench.engine(certainty=0.5).submit(request_of(p, seed=3, **params)).result() for p in prompts]
    engine = bench.engine(certainty=0.5, max_sequences=3)
    together = [h.result() for h in [engine.submit(request_of(p, seed=3, **params)) for p in prompts]]
    assert [plain(c) for c in together] == [plain(c) for c in alone]
    assert max(map(len, bench.runner.steps)) == 3


def test_alternatives_fork_the_prompt_once(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(certainty=0.2)
    params = {"temperature": 1.0, "max_tokens": 8}
    done = engine.submit(request_of([5] * 10, n=3, seed=7, **params)).result()
    assert bench.runner.forks == [9, 9]
    everyone = [done, *done.alternatives]
    assert [c.seed for c in everyone] == [alternative_seed(7, i) for i in range(3)]
    assert len({c.token_ids for c in everyone}) == 3
    for one in everyone:
        again = engine.submit(request_of([5] * 10, seed=one.seed, **params)).result()
        assert plain(again) == plain(one)
    assert bench.open_sequences() == 0


def test_alternatives_share_the_prompt_even_if_the_first_ends_at_once(bench: Bench, request_of: Ask) -> None:
    bench.engine().submit(request_of([5] * 10, n=3, max_tokens=1)).result()
    assert bench.runner.forks == [9, 9]


@pytest.mark.parametrize(("prompt", "sequences"), [([5], 8), ([5] * 10, 1), ([5] * 10, 2)])
def test_alternatives_without_room_for_forks(
    bench: Bench, request_of: Ask, prompt: list[int], sequences: int
) -> None:
    params = {"temperature": 1.0, "max_tokens": 8, "n": 3, "seed": 7}
    expected = bench.engine(certainty=0.2).submit(request_of(prompt, **params)).result()
    done = bench.engine(certainty=0.2, max_sequences=sequences).submit(request_of(prompt, **params)).result()
    assert [plain(c) for c in done.alternatives] == [plain(c) for c in expected.alternatives]
    assert plain(done) == plain(expected)


def test_the_youngest_gives_way_when_memory_runs_out(bench: Bench, request_of: Ask) -> None:
    params = {"temperature": 1.0, "max_tokens": 30, "seed": 4}
    prompts = [[5] * 10, [6] * 10, [7] * 10]
    alone = [bench.engine(certainty=0.3).submit(request_of(p, **params)).result() for p in prompts]
    engine = bench.engine(certainty=0.3, kv_tokens=60)
    handles = [engine.submit(request_of(p, **params)) for p in prompts]
    assert [plain(h.result()) for h in handles] == [plain(c) for c in alone]
    assert bench.open_sequences() == 0


def test_alternatives_survive_when_memory_runs_out(bench: Bench, request_of: Ask) -> None:
    params = {"temperature": 1.0, "max_tokens": 30, "seed": 4, "n": 4}
    expected = bench.engine(certainty=0.3).submit(request_of([5] * 10, **params)).result()
    done = bench.engine(certainty=0.3, kv_tokens=60).submit(request_of([5] * 10, **params)).result()
    assert [plain(c) for c in done.alternatives] == [plain(c) for c in expected.alternatives]


def test_what_does_not_fit_beside_others_waits(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(kv_tokens=60)
    for handle in [engine.submit(request_of([5 + i] * 40, max_tokens=5, end=False)) for i in range(3)]:
        handle.result()
    computed = sum(len(step.token_ids) for batch in bench.runner.steps for step in batch)
    assert computed == 3 * (40 + 4)  # nothing was begun, sent back and computed again


def test_one_that_cannot_fit_alone_is_an_error(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(kv_tokens=20)
    with pytest.raises(CapacityError, match="do not fit in memory, although nothing else runs"):
        engine.submit(request_of([5] * 10, max_tokens=50)).result()
    assert bench.open_sequences() == 0
    assert len(engine.submit(request_of([5] * 10, max_tokens=4)).result().token_ids) == 4


def test_close_ends_streams_and_refuses_the_rest(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(max_context=10**6, kv_tokens=10**7)
    stream = TokenStream(engine.submit(request_of(max_tokens=10**6)))
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(ClosedError, match="was closed"):
        list(stream)
    with pytest.raises(ClosedError):
        stream.result()
    stream.cancel()
    for call in (
        lambda: engine.submit(request_of()),
        lambda: engine.logits([1]),
        lambda: engine.score([[1]]),
    ):
        with pytest.raises(ClosedError):
            call()


def test_a_result_outlives_its_engine(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abc")
    handle = engine.submit(request_of())
    handle.result()
    engine.close()
    assert handle.result().text == "abc"


def test_one_bad_request_does_not_hurt_the_others(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abc")
    good, bad = engine.submit(request_of([5])), engine.submit(request_of([9]))

    def refuse(number: int) -> None:
        if any(9 in step.token_ids for step in bench.runner.steps[-1]):
            raise BackendError("poison")

    bench.runner.before = refuse
    assert good.result().text == "abc"
    with pytest.raises(BackendError, match="poison"):
        bad.result()
    assert bench.open_sequences() == 0


def test_what_a_runner_raises_names_the_backend_and_the_engine_goes_on(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abc")

    def break_(number: int) -> None:
        raise RuntimeError("out of ink")

    bench.runner.before = break_
    handles = [engine.submit(request_of([n])) for n in (5, 6)]
    failures = []
    for handle in handles:
        with pytest.raises(
            BackendError, match=r"backend 'scripted' failed in a step: RuntimeError\('out of ink'\)"
        ) as e:
            handle.result()
        assert isinstance(e.value.__cause__, RuntimeError)
        failures.append(e.value)
    assert failures[0] is not failures[1]
    with pytest.raises(BackendError, match="out of ink"):
        engine.logits([1, 2])
    bench.runner.before = lambda number: None
    assert engine.submit(request_of()).result().text == "abc"
    assert bench.open_sequences() == 0


def test_more_completions_than_can_wait_are_refused(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="abc", queue_size=2000)
    with pytest.raises(
        ArgumentError, match=r"n=1000000: must be at most 2000; .* EngineOptions\(queue_size=...\)"
    ):
        engine.submit(request_of(n=1_000_000))
    with pytest.raises(ArgumentError, match="n=1025: must be at most 1024"):
        bench.engine(queue_size=1).submit(request_of(n=1025))


def test_threads_join_one_batch(bench: Bench, request_of: Ask) -> None:
    params = {"temperature": 1.0, "max_tokens": 40, "seed": 1}
    prompts = [[5 + i] * (i + 1) for i in range(6)]
    expected = [bench.engine(certainty=0.3).submit(request_of(p, **params)).result() for p in prompts]
    engine = bench.engine(certainty=0.3)
    barrier, found = threading.Barrier(6), {}

    def work(index: int) -> None:
        barrier.wait()
        stream = TokenStream(engine.submit(request_of(prompts[index], **params)))
        text = texts(stream)
        found[index] = stream.result()
        assert found[index].text == text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [plain(found[i]) for i in range(6)] == [plain(c) for c in expected]
    assert bench.open_sequences() == 0


def test_closing_from_another_thread(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine()
    bench.runner.after = lambda number: started.set()
    started, errors = threading.Event(), []

    def work() -> None:
        try:
            engine.submit(request_of(max_tokens=100_000, end=False)).result()
        except ClosedError as error:
            errors.append(error)

    engine = bench.engine(max_context=100_000, kv_tokens=10**9)
    bench.runner.after = lambda number: started.set()
    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    engine.close()
    thread.join()
    assert len(errors) == 1


def test_no_runner_sees_a_top_k_beyond_31_bits(bench: Bench, request_of: Ask) -> None:
    engine = bench.engine(reply="ab", select=True)
    forward = bench.runner.forward
    seen: set[int] = set()

    def look(batch: Sequence[Step]) -> list[StepResult]:
        seen.update(step.select.top_k for step in batch if step.select)
        return forward(batch)

    bench.runner.forward = look  # type: ignore[method-assign]
    assert engine.submit(request_of(top_k=10**30)).result().text == "ab"
    assert seen == {2**31 - 1}


def test_timings_are_those_of_the_request(bench: Bench, request_of: Ask) -> None:
    timings = bench.engine(reply="abc").submit(request_of()).result().timings
    assert 0 < timings.prefill_seconds <= timings.time_to_first_token
    assert timings.prefill_tokens_per_second == pytest.approx(3 / timings.prefill_seconds)
    assert timings.decode_tokens_per_second == pytest.approx(3 / timings.decode_seconds)
    assert timings.peak_memory > 1 << 20
    one = bench.engine(reply="abc").submit(request_of(max_tokens=1)).result().timings
    assert one.decode_tokens_per_second == 0.0
