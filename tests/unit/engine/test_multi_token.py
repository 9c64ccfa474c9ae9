"""Speculation by multi-token prediction: the same tokens, fewer steps where it is right, off where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ernie_accel as ea
from ernie_accel.backends.base import RunnerInfo
from ernie_accel.backends.checks import check_drafts
from ernie_accel.backends.mock import MockOptions
from ernie_accel.backends.registry import available
from ernie_accel.checkpoint.base import Tensor
from ernie_accel.engine.costs import StepCosts
from ernie_accel.engine.job import Job
from ernie_accel.engine.local import LocalEngine
from ernie_accel.engine.multi_token import MOST_GUESSES, PROBE, Guesses, MultiToken, _Asking
from ernie_accel.engine.options import EngineOptions
from ernie_accel.engine.request import Request
from ernie_accel.errors import BackendError, CapacityError, UnsupportedError
from ernie_accel.testing import synthetic, tiny_config
from ernie_accel.testing.synthetic import SyntheticCheckpoint
from tests.unit.engine.conftest import END, VOCAB, Letters, ScriptedRunner

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Bench

Ask = Callable[..., Request]

REPLY = [10, 25, 12, 33, 14, 47, 16, 51, 20, 9, 40, 31] * 8


class DraftingRunner(ScriptedRunner):
    """Guesses what it will say, wrongly where ``wrong`` says so; records what it was asked."""

    def __init__(self, info: RunnerInfo, options: MockOptions, kv_tokens: int) -> None:
        super().__init__(info, options, kv_tokens)
        self.asked: list[tuple[int, int]] = []
        self.wrong: Callable[[int], bool] = lambda position: False
        self.refuse: Callable[[int], None] = lambda number: None
        self.slow: Callable[[int], bool] = lambda number: False

    def draft(self, seqs: Sequence[int], token_ids: Sequence[int], depth: int) -> list[tuple[int, ...]]:
        self._check_open()
        check_drafts(seqs, token_ids, depth, self._info, self._growable_length)
        self.asked.append((len(seqs), depth))
        self.refuse(len(self.asked))
        if self.slow(len(self.asked)):
            return [() for _ in seqs]
        return [self._guess([*self._state(s).ids, t], depth) for s, t in zip(seqs, token_ids, strict=True)]

    def _guess(self, ids: list[int], depth: int) -> tuple[int, ...]:
        known = len(ids)
        for _ in range(depth):
            token = self.next_token(ids)
            ids.append((token + 1) % VOCAB if self.wrong(len(ids)) else token)
        return tuple(ids[known:])


def engine_of(
    *, select: bool = True, max_context: int = 256, speculation: Any = "mtp", **given: Any
) -> LocalEngine:
    info = RunnerInfo(
        backend="scripted",
        vocab_size=VOCAB,
        hidden_size=4,
        max_context=max_context,
        precision="fp32",
        kv_precision="fp32",
        page_size=1,
        max_step_tokens=64,
        max_sequences=8,
        capabilities=frozenset({"park", "draft", *(["select"] if select else [])}),
    )
    certainty = given.pop("certainty", 100.0)
    runner = DraftingRunner(
        info, MockOptions(reply=REPLY, certainty=certainty), given.pop("kv_tokens", 10_000)
    )
    options = EngineOptions(**{"prefix_cache": False, "speculation": speculation, **given})
    return LocalEngine(runner, decoder=Letters, options=options)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is learned of durations: a guess for each costs a tenth of a step."""
    monkeypatch.setattr(StepCosts, "note", lambda self, tokens, seconds: None)


def runner_of(engine: LocalEngine) -> DraftingRunner:
    assert isinstance(engine._runner, DraftingRunner)
    return engine._runner


@pytest.mark.usefixtures("steady")
def test_right_guesses_are_taken_and_save_steps(request_of: Ask) -> None:
    engine = engine_of()
    done = engine.submit(request_of([3, 5], end=False, max_tokens=97)).result()
    assert done.token_ids == (*REPLY, END)
    assert done.timings.accepted_tokens == done.timings.drafted_tokens == 48
    runner = runner_of(engine)
    assert len(runner.steps) == 49
    assert set(runner.asked) == {(1, 1)}
    plain = engine_of(speculation="off")
    assert plain.submit(request_of([3, 5], end=False, max_tokens=97)).result().token_ids == done.token_ids
    assert len(runner_of(plain).steps) == 97
    assert runner_of(plain).asked == []


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"stop": ("kl",)},
        {"max_tokens": 1},
        {"max_tokens": 2},
        {"max_tokens": 7, "logprobs": 2},
        {"temperature": 2.0, "seed": 4},
        {"repetition_penalty": 1.3, "temperature": 1.0},
        {"presence_penalty": 0.5, "temperature": 1.0},
        {"n": 3, "temperature": 1.5, "seed": 9},
    ],
)
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_any_guesses_give_the_same_tokens(
    request_of: Ask, select: bool, params: dict[str, Any], every: int
) -> None:
    def ask(engine: LocalEngine) -> list[Any]:
        prompts = [[3, *REPLY[: 3 * i], 5] for i in range(4)]
        handles = [engine.submit(request_of(p, **{"max_tokens": 40, **params})) for p in prompts]
        done = [handle.result() for handle in handles]
        return [
            (o.text, o.token_ids, o.finish_reason, o.logprobs) for d in done for o in (d, *d.alternatives)
        ]

    expected = ask(engine_of(speculation="off", select=select, certainty=1.0))
    engine = engine_of(select=select, certainty=1.0)
    runner_of(engine).wrong = lambda position: position % every == 0
    assert ask(engine) == expected
    engine.metrics()
    assert runner_of(engine).open_sequences == 0


@pytest.mark.usefixtures("steady")
def test_a_guess_that_a_penalty_would_see_is_not_made(request_of: Ask) -> None:
    """Of what comes after it, its logit would depend on whether it is right."""

    class Doubling(DraftingRunner):
        """Would say each token of its reply twice, one after the other, were it not for a penalty."""

        def next_token(self, ids: Sequence[int]) -> int:
            return ids[-1] if len(ids) % 2 else (ids[-1] + 7) % VOCAB

        def _logits(self, ids: list[int]) -> Any:
            return super()._logits(ids) + np.float32(50)

    def ask(speculation: str) -> tuple[Any, int]:
        engine = engine_of(speculation=speculation, certainty=1.0)
        runner_of(engine).__class__ = Doubling
        asked = [request_of([3, 5], end=False, max_tokens=40, repetition_penalty=p) for p in (1.0, 2.0)]
        done = [engine.submit(request).result() for request in asked]
        return [each.token_ids for each in done], done[0].timings.accepted_tokens

    tokens, accepted = ask("mtp")
    assert accepted > 0
    assert tokens == ask("off")[0]


@pytest.mark.usefixtures("steady")
def test_several_requests_are_asked_for_in_one_call(request_of: Ask) -> None:
    engine = engine_of()
    handles = [engine.submit(request_of([3, 5 + i], max_tokens=60)) for i in range(5)]
    assert all(handle.result().token_ids == tuple(REPLY[:60]) for handle in handles)
    assert max(count for count, _ in runner_of(engine).asked) > 1


@pytest.mark.usefixtures("steady")
def test_guesses_that_are_never_right_end_but_for_a_probe(request_of: Ask) -> None:
    engine = engine_of(max_context=1024)
    runner_of(engine).wrong = lambda position: True
    for _ in range(10):
        engine.submit(request_of([3, 5])).result()
    asked = len(runner_of(engine).asked)
    for _ in range(10):
        assert engine.submit(request_of([3, 5])).result().token_ids == (*REPLY, END)
    probes = len(runner_of(engine).asked) - asked
    assert 10 * len(REPLY) // PROBE - 2 <= probes <= 10 * len(REPLY) // PROBE + 1
    assert all(depth == 1 for _, depth in runner_of(engine).asked[asked:])


@pytest.mark.usefixtures("steady")
def test_guesses_that_are_right_again_come_back(request_of: Ask) -> None:
    engine = engine_of()
    runner_of(engine).wrong = lambda position: True
    for _ in range(5):
        engine.submit(request_of([3, 5])).result()
    runner_of(engine).wrong = lambda position: False
    for _ in range(60):
        done = engine.submit(request_of([3, 5])).result()
    assert done.timings.accepted_tokens >= len(REPLY) // 2


@pytest.mark.usefixtures("steady")
def test_memory_that_is_used_up_ends_nothing(request_of: Ask) -> None:
    engine = engine_of()

    def refuse(number: int) -> None:
        if number % 2:
            raise CapacityError("no pages")

    runner_of(engine).refuse = refuse
    done = engine.submit(request_of([3, 5])).result()
    assert done.token_ids == (*REPLY, END)
    assert done.timings.accepted_tokens > 0


@pytest.mark.usefixtures("steady")
@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_a_failure_of_guesses_ends_no_request(request_of: Ask) -> None:
    engine = engine_of()

    def refuse(number: int) -> None:
        raise BackendError("logits hold nan")

    runner_of(engine).refuse = refuse
    assert engine.submit(request_of([3, 5])).result().token_ids == (*REPLY, END)


@pytest.mark.usefixtures("steady")
@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("error", [BackendError, RuntimeError])
def test_a_failure_of_guesses_ends_nothing_but_them(request_of: Ask, error: type[Exception]) -> None:
    engine = engine_of()

    def refuse(number: int) -> None:
        if number == 3:
            raise error("logits hold nan")

    runner_of(engine).refuse = refuse
    with pytest.warns(RuntimeWarning, match="is off from here on: logits hold nan"):
        done = engine.submit(request_of([3, 5])).result()
    assert done.token_ids == (*REPLY, END)
    assert engine.submit(request_of([3, 5])).result().token_ids == (*REPLY, END)
    assert len(runner_of(engine).asked) == 3


@pytest.mark.usefixtures("steady")
def test_a_runner_that_catches_up_is_waited_for(request_of: Ask) -> None:
    engine = engine_of()
    runner_of(engine).slow = lambda number: number < 5
    done = engine.submit(request_of([3, 5], end=False, max_tokens=97)).result()
    assert done.token_ids == (*REPLY, END)
    assert 0 < done.timings.accepted_tokens == done.timings.drafted_tokens


@pytest.mark.parametrize("context", range(20, 32))
def test_guesses_end_with_the_context(request_of: Ask, context: int) -> None:
    engine = engine_of(max_context=context)
    done = engine.submit(request_of([3, 5], max_tokens=100)).result()
    assert done.token_ids == tuple(REPLY[: context - 2])
    assert done.finish_reason == "length"


class Waiting(Job):
    """A job that only says how much room it has."""

    draft_room = 100
    step = accept = cancel = lambda self, *given: None  # type: ignore[assignment]


def test_what_the_runner_has_not_caught_up_with_stays_behind() -> None:
    tokens = list(range(20))
    guesses = Guesses(tokens, MultiToken(runner_of(engine_of())).chances)
    guesses.give(())
    assert (guesses.backlog, guesses.drafts(3)) == (20, [])
    guesses.give((7, 8))
    assert (guesses.backlog, guesses.drafts(3)) == (0, [7, 8])


def depth_of(chance: float, cost: float, count: int = 1, row: float = 0.0) -> int:
    """Return what is chosen where a step takes 10 ms, a pass ``cost`` and each row more ``row`` times that."""
    shared = MultiToken(runner_of(engine_of()))
    for _ in range(40):
        for tokens in range(1, 40):
            shared.costs.note(tokens, 0.01 * (1 + row * (tokens - 1)))
        shared.passes.note(count, 0.01 * cost)
    shared.chances.values[1:] = [chance] * 6
    asking = [_Asking(Waiting([3, 5]), Guesses([3, 5], shared.chances)) for _ in range(count)]
    return shared._depth(asking, count, 64)


def test_the_depth_follows_what_guesses_cost_and_how_often_they_are_right() -> None:
    assert depth_of(0.9, cost=0.1) > 1
    assert depth_of(0.9, cost=2.0) == 0
    assert depth_of(0.05, cost=0.1) == 0
    assert depth_of(0.3, cost=0.1) == 1
    assert depth_of(0.3, cost=0.1, count=8) == 0  # what is taken from others has to promise more
    assert depth_of(1.0, cost=0.01) == MOST_GUESSES
    assert depth_of(0.5, cost=0.1, count=4) >= 1
    assert depth_of(0.5, cost=0.1, count=4, row=1.0) == 0  # rows cost as much as steps: nothing is to be had


def test_a_runner_without_is_refused(bench: Bench) -> None:
    with pytest.raises(UnsupportedError, match="backends 'native' and 'reference' have it"):
        bench.engine(speculation="mtp")


def test_a_backend_without_is_refused() -> None:
    checkpoint = synthetic(tiny_config(num_nextn_predict_layers=1))
    with pytest.raises(ea.UnsupportedError, match="backends 'native' and 'reference' have it"):
        ea.Model.load(checkpoint, backend="mock", engine=EngineOptions(speculation="mtp"), progress=False)
    with pytest.raises(ea.CheckpointError, match="num_nextn_predict_layers is 0"):
        ea.Model.load(synthetic(tiny_config()), backend="mock", engine=EngineOptions(speculation="mtp"))


class Cycle(SyntheticCheckpoint):
    """A model that says a fixed token after each token, whose predicting layer does the same to the token it is given.

    Layers add nothing to the embedding, and the head finds the embedding whose successor is meant.
    """

    def tensor(self, name: str) -> Tensor:
        found = super().tensor(name)
        data = np.array(found.data)
        vocab, hidden = self.config.vocab_size, self.config.hidden_size
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            data[:] = 0
        elif name.endswith(("norm.weight", "norm.0.weight")):
            data[:] = 1
        elif name.endswith("mtp_linear_proj.0.weight"):
            data[:] = np.eye(hidden, 2 * hidden)
        elif name == "lm_head.weight":
            embedding = super().tensor("model.embed_tokens.weight").data
            unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
            data[(np.arange(vocab) * 5 + 3) % vocab] = 4 * unit
        return Tensor(data, found.dtype)


BACKENDS = [
    ("reference", "fp32"),
    ("native", "fp32"),
    ("native", "bf16"),
    ("native", "int8"),
    ("native", "int4"),
]


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_a_model_whose_guesses_are_right_by_construction_takes_fewer_steps(
    backend: str, precision: Any
) -> None:
    if not available()[backend].ok:
        pytest.skip(available()[backend].reason)
    config = tiny_config(tie_word_embeddings=False, num_nextn_predict_layers=1, eos_token_id=None)
    checkpoint = Cycle(config, "cycle", 0, "float32")
    expected, token = [], 7
    for _ in range(60):
        token = (token * 5 + 3) % 128
        expected.append(token)
    counted = {}
    for speculation in ("off", "mtp"):
        options = EngineOptions(speculation=speculation)
        with ea.Model.load(
            checkpoint, backend=backend, precision=precision, engine=options, progress=False
        ) as model:
            done = model.generate([9, 11, 7], max_tokens=60, temperature=0.0)
            assert list(done.token_ids) == expected
            counted[speculation] = model.metrics().counters
    assert counted["mtp"]["accepted_tokens"] == counted["mtp"]["drafted_tokens"] > 0
    assert (counted["off"]["steps"], counted["mtp"]["steps"]) == (60, 31)


@pytest.mark.parametrize(("backend", "precision"), BACKENDS)
def test_random_models_say_the_same(backend: str, precision: Any) -> None:
    if not available()[backend].ok:
        pytest.skip(available()[backend].reason)
    checkpoint = synthetic(tiny_config(True, num_nextn_predict_layers=1, max_position_embeddings=512))
    written = []
    for speculation in ("off", "mtp"):
        options = EngineOptions(speculation=speculation)
        with ea.Model.load(
            checkpoint, backend=backend, precision=precision, engine=options, progress=False
        ) as model:
            prompts = [[5, 6, 7], list(range(3, 120)), [9], [5, 6, 7, 8]]
            handles = [
                model.submit(p, max_tokens=50, temperature=0.7 * (i % 2), seed=i)
                for i, p in enumerate(prompts)
            ]
            written.append([handle.result().token_ids for handle in handles])
            if speculation == "mtp":
                assert model.metrics().counters["drafted_tokens"] > 0
    if backend == "native":  # the reference is not invariant: a step with guesses may round otherwise
        assert written[0] == written[1]
