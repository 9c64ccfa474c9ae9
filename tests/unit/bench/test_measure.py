from __future__ import annotations

from collections.abc import Iterator

import pytest

import ernie_accel as ea
from ernie_accel.backends.base import PartProfile, StepProfile
from ernie_accel.bench import measure as module
from ernie_accel.bench.measure import Decoding, Measured, measure, prefill
from ernie_accel.bench.tables import columns, plain, profile_table, speed_table
from ernie_accel.bench.workload import Workload
from ernie_accel.testing import synthetic, tiny_config

native = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")
DECODE = Workload(measures="decode", context=5, batch=3, steps=4)
PREFILL = Workload(measures="prefill", context=7)


@pytest.fixture
def model() -> Iterator[ea.Model]:
    backend = "native" if ea.backends()["native"].ok else "reference"
    with ea.Model.load(synthetic(tiny_config(max_position_embeddings=4096)), backend=backend) as model:
        yield model


def test_prefill_gives_the_token_that_generating_gives(model: ea.Model) -> None:
    prompt = [5, 6, 7, 8]
    expected = model.generate(prompt, max_tokens=1, temperature=0, ignore_eos=True).token_ids
    assert (prefill(model, prompt),) == expected


@pytest.mark.parametrize("length", [5, 200])
def test_decoding_advances_every_sequence_by_one_token_a_step(model: ea.Model, length: int) -> None:
    """With 200 tokens each, the first sequence could write while the prompt of the last is read."""
    prompts = [[3 + (i + j) % 100 for j in range(length)] for i in range(6)]
    decoding = Decoding(model, prompts)
    assert [len(text) for text in decoding.texts] == [length + 1] * 6
    computed = model.metrics().counters["computed_tokens"]
    decoding.advance(14)
    decoding.advance(6)
    assert [len(text) for text in decoding.texts] == [length + 21] * 6
    again = 0 if length >= 16 else length * 6  # what is too short to be kept is read again
    assert model.metrics().counters["computed_tokens"] - computed <= 20 * 6 + again
    done = model.generate(prompts, max_tokens=21, temperature=0, ignore_eos=True)
    assert [[*p, *c.token_ids] for p, c in zip(prompts, done, strict=True)] == decoding.texts
    decoding.close()
    assert model.metrics().gauges["kv_used_tokens"] == 0


def test_every_round_has_a_rate_and_a_ceiling(model: ea.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda action: [action(), 0.5][1])
    made = measure(model, DECODE, 100, rounds=3, ceiling=lambda: 7.0, profile=False)
    assert made.rates == [24.0] * 3
    assert made.ceilings == [7.0] * 3
    assert (made.profile, made.step_bytes, made.bandwidth_share) == (None, None, None)
    assert measure(model, PREFILL, 100, rounds=1, ceiling=lambda: 7.0, profile=False).rates == [14.0]


@native
def test_profile_is_of_one_round(model: ea.Model) -> None:
    made = measure(model, DECODE, 100, rounds=2, ceiling=lambda: 7e9, profile=True)
    assert made.profile is not None
    assert made.profile.steps == DECODE.steps
    assert made.profile_seconds >= made.profile.seconds > 0
    assert made.step_bytes == made.profile.bytes / DECODE.steps
    assert made.bandwidth_share is not None
    reading = measure(model, PREFILL, 100, rounds=1, ceiling=lambda: 7e9, profile=True)
    assert reading.profile is not None
    assert reading.profile.steps == 1
    assert reading.bandwidth_share is None


def measured(profile: bool = True) -> Measured:
    made = Measured(DECODE, rates=[30.0, 60.0, 45.0], ceilings=[1000.0, 4000.0, 2000.0])
    if profile:
        parts = (PartProfile("qkv", 8, 1.0, 400), PartProfile("norm", 8, 0.5, 0))
        made.profile, made.profile_seconds = StepProfile(4, parts), 2.0
    return made


def test_share_is_taken_within_rounds() -> None:
    # 100 bytes a step, 10, 20 and 15 steps a second.
    share = measured().bandwidth_share
    assert share is not None
    assert (share.low, share.median, share.high) == (0.5, 0.75, 1.0)


def test_speed_table_has_a_row_for_each_workload() -> None:
    assert speed_table([measured(False)]).splitlines() == [
        "workload    tokens/s  lowest  highest",
        "decode-5x3      45.0    30.0     60.0",
    ]
    assert speed_table([measured()]).splitlines()[1].endswith("75%")


def test_profile_table_adds_up() -> None:
    lines = [line.split() for line in profile_table(measured()).splitlines()]
    assert lines[1] == ["qkv", "250.000", "50.0%", "0.0", "0.0", "20%"]
    assert lines[2] == ["norm", "125.000", "25.0%"]
    assert lines[3] == ["outside", "the", "core", "125.000", "25.0%"]
    assert lines[4][:3] == ["all", "500.000", "100.0%"]


def test_plain_values_hold_every_round() -> None:
    made = plain(measured())
    assert made["tokens_per_second"]["values"] == [30.0, 60.0, 45.0]
    assert made["bandwidth_share"]["median"] == 0.75
    assert [part["name"] for part in made["profile"]["parts"]] == ["qkv", "norm", "outside the core", "all"]
    assert "profile" not in plain(measured(False))


def test_columns_are_aligned() -> None:
    assert columns([["a", "bb"], ["ccc", ""], ["d", "1"]]) == "a    bb\nccc\nd     1"
