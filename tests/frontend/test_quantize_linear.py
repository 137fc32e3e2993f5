"""QuantizeLinear and DequantizeLinear become types, whatever exporter style the model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bevel.errors import UnsupportedOp
from bevel.ir.graph import Level
from bevel.ir.interp import run
from bevel.ir.types import Int, Quant
from bevel.ir.verify import verify
from bevel.passes.canonicalize import canonicalize
from tests.frontend.onnx_files import agrees, imported, model_of

node = helper.make_node
F = np.float32


def qdq(x: str, y: str, scale: str = "s", zero: str = "z") -> list[onnx.NodeProto]:
    inputs = [scale, zero] if zero else [scale]
    return [node("QuantizeLinear", [x, *inputs], [f"{y}.q"]), node("DequantizeLinear", [f"{y}.q", *inputs], [y])]


def normal(*shape: int) -> Any:
    return np.random.default_rng(5).normal(size=shape).astype(F)


@pytest.mark.parametrize(("dtype", "zero", "expected"), [(np.int8, -7, -7), (np.uint8, 121, -7)])
def test_activations_are_signed_whatever_the_exporter_chose(dtype: Any, zero: int, expected: int, tmp_path: Path) -> None:
    nodes = [*qdq("x", "xq"), node("Relu", ["xq"], ["r"]), *qdq("r", "y")]
    model = model_of(nodes, {"x": ["n", 8]}, ["y"], {"s": F(0.05), "z": dtype(zero)})
    graph = agrees(tmp_path, model, {"x": 4 * normal(3, 8)}, rtol=1e-6)
    assert graph.level is Level.ANNOTATED
    assert [n.op for n in graph.nodes] == ["Relu"]
    assert graph.inputs[0].type.elem == graph.outputs[0].type.elem == Quant(Int(8), (float(F(0.05)),), (expected,))


def test_missing_zero_point_means_unsigned_zero(tmp_path: Path) -> None:
    model = model_of(qdq("x", "y", zero=""), {"x": [1, 8]}, ["y"], {"s": F(0.1)})
    graph = agrees(tmp_path, model, {"x": 5 * normal(1, 8)}, rtol=1e-6)
    assert graph.inputs[0].type.elem == Quant(Int(8), (float(F(0.1)),), (-128,))


def test_weights_keep_codes_and_channel_scales(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    constants = {
        "s": F(0.05), "z": np.int8(3), "w": codes, "ws": np.asarray([0.1, 0.2, 0.3, 0.4], F), "wz": np.zeros(4, np.int8),
        "b": np.asarray([1, -2, 3, 100000], np.int32), "bz": np.zeros(4, np.int32),
        "bs": np.asarray([0.005, 0.01, 0.015, 0.02], F),
    }  # fmt: skip
    nodes = [
        *qdq("x", "xq"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], axis=0),
        node("Conv", ["xq", "wf", "bf"], ["c"]),
        *qdq("c", "y"),
    ]
    model = model_of(nodes, {"x": ["n", 3, 5, 5]}, ["y"], constants)
    graph = agrees(tmp_path, model, {"x": normal(2, 3, 5, 5)})
    (conv,) = graph.nodes
    weight, bias = conv.inputs[1], conv.inputs[2]
    assert weight.type.elem == Quant(Int(8), tuple(float(s) for s in constants["ws"]), (0,), 0)
    np.testing.assert_array_equal(weight.array, codes)
    np.testing.assert_array_equal(bias.array, constants["b"])
    assert bias.type.elem == Quant(Int(32), tuple(float(s) for s in constants["bs"]), (0,), 0)


def test_fake_quantized_float_weights_become_codes(tmp_path: Path) -> None:
    weights = normal(6, 4)
    constants = {"s": F(0.02), "z": np.int8(0), "w": weights, "ws": F(0.01)}
    nodes = [*qdq("x", "xq"), *qdq("w", "wf", "ws"), node("MatMul", ["xq", "wt"], ["c"]), *qdq("c", "y")]
    nodes.insert(4, node("Transpose", ["wf"], ["wt"], perm=[1, 0]))
    graph = agrees(tmp_path, model_of(nodes, {"x": [2, 4]}, ["y"], constants), {"x": normal(2, 4)})
    (gemm,) = graph.nodes
    np.testing.assert_array_equal(gemm.inputs[1].array, Quant(Int(8), (float(F(0.01)),)).quantize(weights))


def test_matmul_weights_turn_with_their_channel_axis(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(-127, 128, (4, 6)).astype(np.int8)
    scales = np.linspace(0.01, 0.06, 6).astype(F)
    constants = {"s": F(0.02), "z": np.int8(0), "w": codes, "ws": scales, "wz": np.zeros(6, np.int8)}
    nodes = [*qdq("x", "xq"), node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=1), node("MatMul", ["xq", "wf"], ["y"])]
    graph = agrees(tmp_path, model_of(nodes, {"x": [2, 4]}, ["y"], constants), {"x": normal(2, 4)})
    weight = graph.nodes[0].inputs[1]
    assert isinstance(weight.type.elem, Quant)
    assert weight.type.elem.axis == 0
    np.testing.assert_array_equal(weight.array, codes.T)


def test_weight_only_quantization_is_a_float_model(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(-127, 128, (4, 6)).astype(np.int8)
    constants = {"w": codes, "ws": F(0.02), "wz": np.int8(0)}
    nodes = [node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]), node("MatMul", ["x", "wf"], ["y"])]
    graph = agrees(tmp_path, model_of(nodes, {"x": [2, 4]}, ["y"], constants), {"x": normal(2, 4)})
    assert graph.level is Level.FLOAT
    np.testing.assert_allclose(graph.nodes[0].inputs[1].array, codes.T * F(0.02))


def test_integer_inputs_and_outputs_are_quantized_types(tmp_path: Path) -> None:
    constants = {"s": F(0.5), "z": np.int8(10)}
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("DequantizeLinear", ["t", "s", "z"], ["f"]),
        node("Relu", ["f"], ["r"]),
        node("QuantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["n", 4, 4, 3]}, ["y"], constants, elem=TensorProto.INT8, out_elem=TensorProto.INT8)
    graph = canonicalize(imported(tmp_path, model))
    verify(graph)
    expected = Quant(Int(8), (0.5,), (10,))
    assert graph.inputs[0].type.elem == graph.outputs[0].type.elem == expected
    x = np.random.default_rng(0).integers(-128, 128, (2, 4, 4, 3)).astype(np.int8)
    got = expected.quantize(run(graph, {"x": x})["y"])
    np.testing.assert_array_equal(got, np.maximum(x, 10).transpose(0, 3, 1, 2))


def test_value_read_quantized_and_unquantized_keeps_both(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        *qdq("r", "rq"),
        node("Add", ["r", "rq"], ["a"]),
        *qdq("r", "rq2", "s2"),
        node("Add", ["a", "rq2"], ["y"]),
    ]
    constants = {"s": F(0.3), "s2": F(0.7), "z": np.int8(-128)}
    graph = agrees(tmp_path, model_of(nodes, {"x": [2, 9]}, ["y"], constants), {"x": 9 * normal(2, 9)}, rtol=1e-6)
    assert [n.op for n in graph.nodes].count("Clip") == 2


def test_concat_of_differently_quantized_values(tmp_path: Path) -> None:
    nodes = [*qdq("x", "a", "s1"), *qdq("w", "b", "s2"), node("Concat", ["a", "b"], ["c"], axis=1), *qdq("c", "y", "s3")]
    constants = {"s1": F(0.1), "s2": F(0.2), "s3": F(0.25), "z": np.int8(0)}
    model = model_of(nodes, {"x": [2, 4], "w": [2, 3]}, ["y"], constants)
    agrees(tmp_path, model, {"x": 5 * normal(2, 4), "w": 5 * normal(2, 3)}, rtol=1e-6)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"s": F(0.0), "z": np.int8(0)}, "scale must be positive"),
        ({"s": F(-1.0), "z": np.int8(0)}, "scale must be positive"),
        ({"s": np.asarray([0.1, 0.2], F), "z": np.zeros(2, np.int8)}, "one scale for an activation"),
        ({"s": F(0.1), "z": np.zeros(3, np.int8)}, "do not pair"),
    ],
)
def test_impossible_parameters_are_refused(constants: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=message):
        imported(tmp_path, model_of(qdq("x", "y"), {"x": [1, 2]}, ["y"], constants))


def test_arithmetic_on_codes_is_refused(tmp_path: Path) -> None:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("Add", ["q", "q"], ["y"])]
    with pytest.raises(UnsupportedOp, match="arithmetic on integers without scale"):
        imported(tmp_path, model_of(nodes, {"x": [1, 2]}, ["y"], {"s": F(0.1), "z": np.int8(0)}))
