"""A rank's part of an open checkpoint, without writing it."""

from __future__ import annotations

import numpy as np
import pytest

from ernie_accel.architecture import tensor_specs
from ernie_accel.architecture.split import possible_ranks
from ernie_accel.checkpoint.shard.view import RankView
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.testing import synthetic, tiny_config
from tests.unit.architecture.test_split import random_config

QUERY, OUTPUT = (f"model.layers.0.self_attn.{which}_proj.weight" for which in "qo")


@pytest.mark.parametrize("seed", range(12))
def test_a_part_has_the_shapes_of_its_own_configuration(seed: int) -> None:
    source = synthetic(random_config(seed))
    for ranks in possible_ranks(source.config, 8):
        for rank in range(ranks):
            view = RankView(source, ranks, rank)
            for name, spec in tensor_specs(view.config).items():
                assert view.tensor(name).data.shape == spec.shape, name


def test_rows_columns_and_the_row_for_tokens_of_others() -> None:
    source = synthetic(tiny_config(vocab_size=131))
    views = [RankView(source, 4, rank) for rank in range(4)]
    whole = {name: source.tensor(name).data for name in (QUERY, OUTPUT, "model.embed_tokens.weight")}
    assert np.array_equal(np.concatenate([view.tensor(QUERY).data for view in views]), whole[QUERY])
    assert np.array_equal(np.concatenate([view.tensor(OUTPUT).data for view in views], axis=1), whole[OUTPUT])
    tables = [view.tensor("model.embed_tokens.weight").data for view in views]
    assert not any(table[-1].any() for table in tables)
    rows = np.concatenate([table[:-1] for table in tables])
    assert rows.shape == (132, 64)
    assert np.array_equal(rows[:131], whole["model.embed_tokens.weight"])
    assert not rows[131].any()


def test_what_is_not_there_is_refused() -> None:
    source = synthetic(tiny_config())
    with pytest.raises(ArgumentError, match="must be one of 1, 2, 4"):
        RankView(source, 3, 0)
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        RankView(source, 2, 0).tensor("x")
