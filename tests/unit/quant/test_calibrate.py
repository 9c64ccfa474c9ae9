from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ernie_accel.architecture import ModelConfig, tensor_specs
from ernie_accel.architecture.ernie4_5 import head_name
from ernie_accel.backends.base import LoadOptions, Step
from ernie_accel.backends.reference import ReferenceBackend
from ernie_accel.checkpoint import open_checkpoint
from ernie_accel.checkpoint.base import Checkpoint, Tensor, to_float32
from ernie_accel.errors import ArgumentError, CheckpointError
from ernie_accel.quant import (
    Calibration,
    LayerResult,
    QuantisedResults,
    Recipe,
    built_in_ids,
    quantise_data_free,
)
from ernie_accel.quant.calculator import Array
from ernie_accel.quant.data_free import kind_of
from ernie_accel.testing.synthetic import SyntheticCheckpoint, synthetic
from ernie_accel.testing.tiny import tiny_config
from ernie_accel.tokenizer.load import load_tokenizer

POET = Path(__file__).parents[3] / "examples" / "poet" / "model"

INT8, INT4 = (replace(Recipe.for_precision(p), tokens=600, sequence=60) for p in ("int8", "int4"))
ODD = {
    "hidden_size": 48,
    "head_dim": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 80,
}


class Plain:
    """A checkpoint with the values that quantised matrices stand for."""

    def __init__(self, quantised: QuantisedResults) -> None:
        self._quantised = quantised
        self.config, self.info = quantised.config, quantised.info
        self.directory, self.generation_config = None, quantised.generation_config

    def tensor(self, name: str) -> Tensor:
        if name in self._quantised.names:
            return Tensor(self._quantised.matrix(name).to_float32(), "float32")
        return self._quantised.tensor(name)

    def close(self) -> None:
        pass


def calibrated(
    checkpoint: Checkpoint, recipe: Recipe, finished: Sequence[LayerResult] = (), threads: int = 2
) -> list[LayerResult]:
    ids = built_in_ids(checkpoint.config, None, recipe)
    return list(Calibration(checkpoint, recipe, ids.sequences, finished=finished, threads=threads))


def logits(checkpoint: Checkpoint, ids: Sequence[int]) -> Array:
    runner = ReferenceBackend().open(checkpoint, LoadOptions())
    (result,) = runner.forward([Step(runner.open(), list(ids), rows=len(ids))])
    runner.close()
    assert result.logits is not None
    return result.logits


def loss(
    checkpoint: Checkpoint, results: list[LayerResult], recipe: Recipe, ids: Sequence[int] = range(7, 127, 2)
) -> float:
    """How far the logits of the quantised weights are from the checkpoint's own, as a share."""
    exact = logits(checkpoint, ids)
    got = logits(Plain(QuantisedResults(checkpoint, results, recipe, "")), ids)
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def same(left: list[LayerResult], right: list[LayerResult]) -> bool:
    def bits(results: list[LayerResult]) -> list[bytes]:
        return [
            b"".join(
                array.tobytes()
                for array in (
                    m.codes,
                    m.scales,
                    m.exact,
                    m.exact_weights,
                    np.zeros(0) if m.subs is None else m.subs,
                )
            )
            for result in results
            for _, m in sorted(result.matrices.items())
        ] + [t.tobytes() for result in results for _, t in sorted(result.tensors.items())]

    return bits(left) == bits(right)


@pytest.fixture(scope="module")
def dense() -> SyntheticCheckpoint:
    return synthetic(tiny_config(hidden_size=256, intermediate_size=512, head_dim=64))


@pytest.fixture(scope="module")
def moe() -> SyntheticCheckpoint:
    return synthetic(tiny_config(moe=True))


def check_complete(config: ModelConfig, results: list[LayerResult], recipe: Recipe) -> None:
    assert [result.index for result in results] == list(range(config.num_hidden_layers + 1))
    matrices = {name: matrix for result in results for name, matrix in result.matrices.items()}
    specs = tensor_specs(config)
    wanted = {name for name in specs if kind_of(name)} | {head_name(config)}
    assert set(matrices) == wanted
    for name, matrix in matrices.items():
        kind = kind_of(name) or "head"
        assert matrix.shape == specs[name].shape
        assert (matrix.bits, matrix.group) == (recipe.bits_of(kind), recipe.group_of(kind))
        assert len(matrix.exact) % 2 == 0
    assert set(matrices) == {name for result in results for name in result.errors}


def shared_columns(results: list[LayerResult]) -> None:
    """Matrices that read one input have the same exact columns."""
    for result in results[:-1]:
        by_input: dict[str, set[bytes]] = {}
        for name, matrix in result.matrices.items():
            kind = kind_of(name)
            if kind in ("qkv", "gate_up"):
                by_input.setdefault(kind, set()).add(matrix.exact.tobytes())
        assert all(len(found) == 1 for found in by_input.values())


@pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
def test_dense(dense: SyntheticCheckpoint, recipe: Recipe) -> None:
    results = calibrated(dense, recipe)
    check_complete(dense.config, results, recipe)
    shared_columns(results)
    assert len(results[0].matrices["model.layers.0.self_attn.q_proj.weight"].exact) > 0
    assert loss(dense, results, recipe) < (0.02 if recipe is INT8 else 0.2)


@pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
def test_without_data(dense: SyntheticCheckpoint, recipe: Recipe) -> None:
    free = list(quantise_data_free(dense, recipe))
    check_complete(dense.config, free, recipe)
    assert loss(dense, free, recipe) < (0.02 if recipe is INT8 else 0.3)


def test_calibration_beats_nearest_rounding_on_a_trained_model() -> None:
    recipe = replace(INT4, tokens=3000, sequence=250)
    with open_checkpoint(POET) as poet:
        ids = built_in_ids(poet.config, load_tokenizer(POET), recipe)
        results = list(Calibration(poet, recipe, ids.sequences))
        judged = built_in_ids(poet.config, load_tokenizer(POET), replace(recipe, tokens=4000)).sequences[-1]
        free = list(quantise_data_free(poet, recipe))
        assert loss(poet, results, recipe, judged) < 0.8 * loss(poet, free, recipe, judged)


@pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("is_moe", [False, True], ids=["dense", "moe"])
def test_odd_widths(recipe: Recipe, is_moe: bool) -> None:
    checkpoint = synthetic(tiny_config(moe=is_moe, **ODD))
    results = calibrated(checkpoint, recipe)
    check_complete(checkpoint.config, results, recipe)
    assert loss(checkpoint, results, recipe) < (0.2 if is_moe else 0.05) * (1 if recipe is INT8 else 10)


@pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
def test_experts(moe: SyntheticCheckpoint, recipe: Recipe) -> None:
    results = calibrated(moe, recipe)
    check_complete(moe.config, results, recipe)
    shared_columns(results)
    quantised = QuantisedResults(moe, results, recipe, "")
    for name, spec in tensor_specs(moe.config).items():
        if spec.role == "router":
            np.testing.assert_array_equal(quantised.tensor(name).data, moe.tensor(name).data)
    assert loss(moe, results, recipe) < (0.2 if recipe is INT8 else 0.6)  # random routers change their minds


def test_experts_that_saw_little_are_rounded_to_nearest(moe: SyntheticCheckpoint) -> None:
    few = replace(INT4, tokens=20, sequence=20)
    results = calibrated(moe, few)
    check_complete(moe.config, results, few)
    shared_columns(results)


@pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("is_moe", [False, True], ids=["dense", "moe"])
def test_an_interrupted_run_goes_on_to_the_same_bits(recipe: Recipe, is_moe: bool) -> None:
    checkpoint = synthetic(tiny_config(moe=is_moe))
    whole = calibrated(checkpoint, recipe)
    for done in (1, len(whole) - 1, len(whole)):
        again = calibrated(checkpoint, recipe, finished=whole[:done])
        assert all(left is right for left, right in zip(again[:done], whole[:done], strict=True))
        assert same(again, whole)


@pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("is_moe", [False, True], ids=["dense", "moe"])
def test_threads_do_not_change_a_bit(recipe: Recipe, is_moe: bool) -> None:
    checkpoint = synthetic(tiny_config(moe=is_moe))
    one, two, three = (calibrated(checkpoint, recipe, threads=n) for n in (1, 2, 3))
    assert same(one, two)
    assert same(one, three)


def test_results_make_a_checkpoint(dense: SyntheticCheckpoint) -> None:
    results = calibrated(dense, INT8)
    quantised = QuantisedResults(dense, results, INT8, "600 tokens of random ids")
    assert quantised.precision == "int8"
    assert quantised.activations == INT8.activations
    assert quantised.recipe.endswith("calibrated on 600 tokens of random ids.")
    assert quantised.config is dense.config
    with pytest.raises(CheckpointError, match="nothing"):
        quantised.matrix("nothing")
    assert set(quantised.errors) == set(quantised.names)
    assert all(0 < error < 0.1 for error in quantised.errors.values())
    norm = quantised.tensor("model.norm.weight")
    assert norm.data.shape == (256,)


def test_progress_counts_layers(dense: SyntheticCheckpoint) -> None:
    seen: list[tuple[str, int, int]] = []
    ids = built_in_ids(dense.config, None, INT8)
    list(Calibration(dense, INT8, ids.sequences, progress=lambda *report: seen.append(report)))
    assert seen == [("quantise", 1, 3), ("quantise", 2, 3), ("quantise", 3, 3)]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [([], "at least one"), ([[]], "0 ids"), ([[0] * 300], "300 ids"), ([[1, 128]], "128"), ([[-1]], "-1")],
)
def test_bad_ids_say_what_is_wrong(
    dense: SyntheticCheckpoint, sequences: list[list[int]], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        Calibration(dense, INT8, sequences)


def test_weights_that_are_no_numbers_are_refused(dense: SyntheticCheckpoint) -> None:
    class Damaged(SyntheticCheckpoint):
        def tensor(self, name: str) -> Tensor:
            array = to_float32(super().tensor(name)).copy()
            if "up_proj" in name:
                array[1, 2] = np.nan
            return Tensor(array, "float32")

    damaged = Damaged(dense.config, "damaged", 0, "float32")
    with pytest.raises(CheckpointError, match=r"up_proj.*fp32"):
        calibrated(damaged, INT8)
    with pytest.raises(CheckpointError, match=r"up_proj.*fp32"):
        list(quantise_data_free(damaged, INT8))
