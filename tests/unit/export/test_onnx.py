"""What the written ONNX graph is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_accel.architecture import ModelConfig
from ernie_accel.export.signature import Signature
from ernie_accel.export.step import Fusions, write_step
from ernie_accel.export.weights import StepWeights
from ernie_accel.testing.synthetic import synthetic
from ernie_accel.testing.tiny import tiny_config

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")

from ernie_accel.export.onnx_file import DATA_NAME, MODEL_NAME, write_onnx  # noqa: E402
from ernie_accel.export.onnx_precisions import make_builder  # noqa: E402


def builder(
    config: ModelConfig, precision: str = "fp32", fusions: Fusions | None = None, **settings: Any
) -> Any:
    made = make_builder(precision, **settings)
    with synthetic(config) as checkpoint:
        dtype = "float16" if precision == "fp16" else "float32"
        write_step(
            made, StepWeights(checkpoint, config), Signature.of(config, precision, dtype), fusions=fusions
        )
    return made


def kinds(made: Any) -> Counter[str]:
    return Counter(node.op_type for node in made.graph("step").node)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("moe", [False, True])
def test_a_written_model_is_valid_for_its_opset_and_has_no_operation_of_anyone_alone(
    tmp_path: Path, precision: str, moe: bool
) -> None:
    write_onnx(builder(tiny_config(moe=moe), precision), tmp_path)
    model = onnx.load(tmp_path / MODEL_NAME)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 15)]
    assert not any(node.domain for node in model.graph.node)


def test_inputs_and_outputs_are_those_of_the_signature() -> None:
    config = tiny_config()
    graph, signature = builder(config).graph("step"), Signature.of(config, "fp32")
    assert tuple(item.name for item in graph.input) == signature.input_names
    assert tuple(item.name for item in graph.output) == signature.output_names


def test_nothing_copies_the_past() -> None:
    """Keys are transposed within their product, values multiplied as they lie; a join or cut would copy."""
    graph = builder(tiny_config()).graph("step")
    past = {item.name for item in graph.input if item.name.startswith("past")}
    readers = [node for node in graph.node if past & set(node.input)]
    turned = {node.output[0] for node in readers if node.op_type == "Transpose"}
    assert {node.op_type for node in readers} == {"Transpose", "MatMul", "Shape"}
    assert {node.op_type for node in graph.node if turned & set(node.input)} == {"MatMul"}


def test_every_fusion_is_one_operation_instead_of_several() -> None:
    config = tiny_config()
    full = kinds(builder(config))
    layers = config.num_hidden_layers
    assert full["Gemm"] == 4 * layers + 1
    assert kinds(builder(config, fusions=Fusions(qkv=False)))["Gemm"] == 6 * layers + 1
    assert kinds(builder(config, fusions=Fusions(gate_up=False)))["Gemm"] == 5 * layers + 1
    assert kinds(builder(config, fusions=Fusions(rotary=False)))["Sub"] == full["Sub"] + layers
    assert full["ReduceMean"] == 2 * layers + 2  # what runtimes know as a norm
    assert kinds(builder(config, fusions=Fusions(norm=False)))["ReduceMean"] == 0


def test_counts_say_how_much_is_fused() -> None:
    assert Fusions().counts(tiny_config()) == {"qkv": 2, "gate_up": 2, "rotary": 2, "norm": 6}
    # two layers of experts: eight routed and one shared block each, and one dense layer
    assert Fusions().counts(tiny_config(moe=True))["gate_up"] == 1 + 2 * 9
    assert Fusions(qkv=False).counts(tiny_config())["qkv"] == 0


def test_a_tied_table_is_stored_once_and_never_turned() -> None:
    made = builder(tiny_config(vocab_size=333))
    shapes = {name: stored.shape for name, stored in made.stored.items()}
    assert [shape for shape in shapes.values() if 333 in shape] == [(333, 64)]
    transposed = {node.input[0] for node in made.graph("step").node if node.op_type == "Transpose"}
    assert not transposed & set(shapes)


def test_large_models_have_their_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    made = builder(tiny_config())
    one, two = tmp_path / "one", tmp_path / "two"
    for directory, limit in ((one, 1 << 31), (two, 1000)):
        directory.mkdir()
        write_onnx(made, directory, one_file=limit)
    assert [path.name for path in sorted(one.iterdir())] == [MODEL_NAME]
    assert [path.name for path in sorted(two.iterdir())] == [MODEL_NAME, DATA_NAME]
    weights = [
        {
            item.name: onnx.numpy_helper.to_array(item)
            for item in onnx.load(path / MODEL_NAME).graph.initializer
        }
        for path in (one, two)
    ]
    assert weights[0].keys() == weights[1].keys() >= made.stored.keys()
    for name, stored in made.stored.items():
        np.testing.assert_array_equal(weights[0][name], weights[1][name])
        np.testing.assert_array_equal(weights[0][name], stored.load())


def test_progress_reaches_the_size_of_the_weights(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = builder(tiny_config())
    write_onnx(made, tmp_path, lambda *args: seen.append(args))
    total = sum(stored.nbytes for stored in made.stored.values())
    assert seen[-1] == ("export", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


@pytest.mark.parametrize("block", [None, 32, 128])
def test_int8_codes_lie_within_half_a_step_of_the_weights(block: int | None) -> None:
    config = tiny_config(hidden_size=72, head_dim=14)  # no multiple of a block
    made = builder(config, "int8", block=block)
    with synthetic(config) as checkpoint:
        wanted = StepWeights(checkpoint, config).attention_output(0).load()
    name = "model.layers.0.self_attn.o_proj.weight"
    codes, scales = made.stored[f"{name}.codes"].load(), made.stored[f"{name}.scales"].load()
    if block is None:
        found, step = codes.T * scales[:, None].astype(np.float64), scales[:, None]
    else:
        step = scales.reshape(len(wanted), -1, 1)
        found = ((codes.astype(np.float64) - 128) * step).reshape(len(wanted), -1)
        found, step = (
            found[:, : wanted.shape[1]],
            np.repeat(step[..., 0], block, axis=1)[:, : wanted.shape[1]],
        )
    assert np.all(np.abs(found - wanted) <= 0.5001 * step)


def test_a_weight_beyond_float16_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_accel.errors import ArgumentError

    made = builder(tiny_config(), "fp16")
    monkeypatch.setattr(
        "ernie_accel.export.weights.to_float32", lambda tensor: np.full(tensor.data.shape, 1e6, np.float32)
    )
    with pytest.raises(ArgumentError, match="which float16 cannot; choose fp32"):
        made.stored["model.embed_tokens.weight"].load()
