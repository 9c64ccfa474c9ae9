from __future__ import annotations

from collections.abc import Callable

import pytest

import ernie_accel as ea
from ernie_accel.testing import synthetic, tiny_config

native = pytest.mark.skipif(not ea.backends()["native"].ok, reason="the native backend cannot run here")


@native
def test_steps_inside_the_block_are_counted() -> None:
    with ea.Model.load(synthetic(tiny_config()), backend="native") as model:
        model.generate([5, 6], max_tokens=3, ignore_eos=True)
        with model.profile() as profile:
            model.generate([5, 6], max_tokens=4, ignore_eos=True)
        model.generate([5, 6], max_tokens=5, ignore_eos=True)
        assert profile.result.steps == 4
        parts = {part.name: part for part in profile.result.parts}
        assert parts["qkv"].calls == 4 * model.config.num_hidden_layers
        assert parts["head"].bytes > 0
        assert profile.result.bytes == sum(part.bytes for part in parts.values())
        assert profile.result.seconds == pytest.approx(sum(part.seconds for part in parts.values()))


@native
def test_an_error_inside_the_block_ends_the_counting() -> None:
    with ea.Model.load(synthetic(tiny_config()), backend="native") as model:
        with pytest.raises(ZeroDivisionError), model.profile():
            raise ZeroDivisionError
        model.generate([5, 6], max_tokens=3, ignore_eos=True)
        with model.profile() as profile:
            pass
        assert profile.result.steps == 0


@native
def test_closed_models_do_not_count() -> None:
    model = ea.Model.load(synthetic(tiny_config()), backend="native")
    with pytest.raises(ea.ClosedError), model.profile():
        model.close()
    with pytest.raises(ea.ClosedError):
        model.profile()


def test_backends_that_cannot_count_say_so(load_mock: Callable[..., ea.Model]) -> None:
    with (
        load_mock() as model,
        pytest.raises(ea.UnsupportedError, match="'mock' does not tell"),
        model.profile(),
    ):
        pass
