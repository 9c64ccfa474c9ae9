from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from ernie_accel.errors import ArgumentError
from ernie_accel.types import Chunk, SamplingParams, Score, Usage


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"n": 0},
        {"logprobs": -1},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": "much"},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [1]},
        {"stop": 5},
        {"ignore_eos": "no"},
        {"ignore_eos": 1},
        {"stop_token_ids": [-1]},
        {"json_schema": 5},
        {"json_schema": ""},
        {"json_schema": {"a": math.nan}},
        {"json_schema": {"a": {1, 2}}},
        {"json_schema": {"a": "\ud800"}},
        {"json_schema": [{}]},
        {"regex": ""},
        {"regex": 5},
        {"regex": "\ud800"},
        {"grammar": " "},
        {"choices": []},
        {"choices": ""},
        {"choices": "yes"},
        {"choices": ["yes", ""]},
        {"choices": ["yes", 5]},
        {"stop_token_ids": ["a"]},
        {"stop_token_ids": 7},
    ],
)
def test_a_wrong_value_fails_where_it_is_written(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ArgumentError) as error:
        SamplingParams(**wrong)
    assert str(error.value).startswith(f"{name}={value!r}: must be ")


def test_edges_are_allowed() -> None:
    SamplingParams(temperature=0, top_p=1, min_p=0, top_k=0, seed=2**64 - 1, presence_penalty=-2.0)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        max_tokens=np.int64(5),
        seed=np.uint64(2**64 - 1),
        top_k=np.int32(3),
        temperature=np.float32(0.5),
        stop_token_ids=np.array([4, 5]),  # type: ignore[arg-type]
    )
    assert repr(params) == repr(
        SamplingParams(max_tokens=5, seed=2**64 - 1, top_k=3, temperature=0.5, stop_token_ids=(4, 5))
    )


def test_an_impossible_text_has_infinite_perplexity() -> None:
    score = Score(token_ids=(1, 2), logprobs=(None, -12800.0))
    assert score.perplexity == math.inf
    assert "inf" in repr(score)


def test_lists_become_tuples() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[1, 2])
    assert (params.stop, params.stop_token_ids) == (("end",), (1, 2))
    assert hash(params) == hash(SamplingParams(stop=["end"], stop_token_ids=(1, 2)))


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParams().seed = 1  # type: ignore[misc]


def test_score_of_what_nothing_precedes() -> None:
    score = Score(token_ids=(1, 2, 3), logprobs=(None, -1.0, -3.0))
    assert score.total == -4.0
    assert score.perplexity == pytest.approx(math.exp(2.0))
    assert "tokens=3, total=-4.0000" in repr(score)
    assert math.isnan(Score(token_ids=(1,), logprobs=(None,)).perplexity)


def test_small_results() -> None:
    assert Usage(prompt_tokens=2, completion_tokens=3).total_tokens == 5
    assert str(Chunk(text="a", token_ids=(1,))) == "a"


def test_structures_are_kept_so_that_nothing_can_change_them() -> None:
    schema = {"type": "object", "properties": {"名": {"enum": ("a", "b")}}}
    choices = ["yes", "no"]
    params = SamplingParams(json_schema=schema)
    chosen = SamplingParams(choices=choices)
    schema.clear()
    choices.clear()
    assert params.json_schema == '{"type": "object", "properties": {"名": {"enum": ["a", "b"]}}}'
    assert chosen.choices == ("yes", "no")
    assert replace(params, max_tokens=3).json_schema == params.json_schema
    assert hash(params) == hash(replace(params))
    assert params.structure
    assert not SamplingParams().structure
    assert SamplingParams(json_schema="{}").structure.json_schema == "{}"


def test_an_output_has_one_structure_and_ends_with_it() -> None:
    with pytest.raises(ArgumentError, match="regex and choices: an output has one structure"):
        SamplingParams(regex="a", choices=["a"])
    with pytest.raises(ArgumentError, match="json_schema and grammar"):
        SamplingParams(json_schema={}, grammar="start: /a/")
    with pytest.raises(ArgumentError, match="ignore_eos=True: an output with a structure ends with it"):
        SamplingParams(regex="a", ignore_eos=True)
