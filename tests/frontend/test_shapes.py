"""Symbolic dimensions survive the import, and shape arithmetic disappears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from bevel.errors import UnsupportedOp, UsageError
from bevel.ir.interp import run
from bevel.ir.types import Dim
from bevel.ir.verify import verify
from tests.frontend.onnx_files import agrees, imported, model_of

I64 = np.int64
node = helper.make_node


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, I64)


FLATTENERS = {
    "shape-gather-concat": (
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"]),
            node("Unsqueeze", ["n", "axis"], ["n1"]),
            node("Concat", ["n1", "rest"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["y"]),
        ],
        {"zero": np.asarray(0, I64), "axis": ints(0), "rest": ints(-1)},
    ),
    "shape-slice-concat": (
        [
            node("Shape", ["x"], ["s"]),
            node("Slice", ["s", "zero", "one"], ["n"]),
            node("Concat", ["n", "rest"], ["t"], axis=0),
            node("Cast", ["t"], ["t32"], to=7),
            node("Reshape", ["x", "t32"], ["y"]),
        ],
        {"zero": ints(0), "one": ints(1), "rest": ints(60)},
    ),
    "zero-copies": ([node("Reshape", ["x", "t"], ["y"])], {"t": ints(0, -1)}),
    "minus-one-is-the-batch": ([node("Reshape", ["x", "t"], ["y"])], {"t": ints(-1, 60)}),
    "flatten": ([node("Flatten", ["x"], ["y"])], {}),
    "computed-extents": (
        [
            node("Shape", ["x"], ["s"], start=1),
            node("ReduceProd", ["s"], ["p"], keepdims=1),
            node("Shape", ["x"], ["n"], end=1),
            node("Concat", ["n", "p"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["y"]),
        ],
        {},
    ),
}


@pytest.mark.parametrize("name", FLATTENERS)
def test_flattening_keeps_the_batch_symbolic(name: str, tmp_path: Path) -> None:
    nodes, constants = FLATTENERS[name]
    model = model_of(nodes, {"x": ["batch", 3, 4, 5]}, ["y"], constants)
    graph = imported(tmp_path, model)
    verify(graph)
    assert [n.op for n in graph.nodes] == ["Reshape"]
    assert graph.outputs[0].type.shape == (Dim("batch"), 60)
    for batch in (1, 4):
        agrees(tmp_path, model, {"x": np.random.default_rng(0).normal(size=(batch, 3, 4, 5)).astype(np.float32)})


def test_dims_bind_and_bound(tmp_path: Path) -> None:
    model = model_of([node("Relu", ["x"], ["y"])], {"x": ["batch", "length", 4]}, ["y"])
    graph = imported(tmp_path, model, dims={"batch": 2, "length": (1, 16)})
    assert graph.inputs[0].type.shape == (2, Dim("length", 1, 16), 4)
    with pytest.raises(UsageError, match=r"dims \['width'\] given.*\['batch', 'length'\]"):
        imported(tmp_path, model, dims={"width": 3})
    with pytest.raises(UsageError, match="expected a positive integer or a pair"):
        imported(tmp_path, model, dims={"batch": (4, 2)})


def test_open_first_axis_is_the_batch(tmp_path: Path) -> None:
    graph = imported(tmp_path, model_of([node("Relu", ["x"], ["y"])], {"x": ["unk__12", 4]}, ["y"]))
    assert graph.inputs[0].type.shape == (Dim("batch"), 4)


def test_reshape_that_fixes_the_batch_needs_it_bound(tmp_path: Path) -> None:
    model = model_of([node("Reshape", ["x", "t"], ["y"])], {"x": ["batch", 8]}, ["y"], {"t": ints(1, 8)})
    with pytest.raises(UnsupportedOp, match=r"Reshape, opset 17.*batch.*dims="):
        imported(tmp_path, model)
    assert imported(tmp_path, model, dims={"batch": 1}).outputs[0].type.shape == (1, 8)


def test_arithmetic_on_a_symbolic_dimension_is_refused(tmp_path: Path) -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Mul", ["s", "two"], ["t"]), node("Reshape", ["x", "t"], ["y"])]
    with pytest.raises(UnsupportedOp, match="symbolic dimension"):
        imported(tmp_path, model_of(nodes, {"x": ["batch", 8]}, ["y"], {"two": ints(2, 2)}))


def test_constant_nodes_and_initializers_are_the_same(tmp_path: Path) -> None:
    tensor = helper.make_tensor("t", 7, [2], [0, -1])
    nodes = [node("Constant", [], ["t"], value=tensor), node("Reshape", ["x", "t"], ["y"])]
    assert imported(tmp_path, model_of(nodes, {"x": ["n", 2, 3]}, ["y"])).outputs[0].type.shape == (Dim("n"), 6)


def test_outputs_keep_their_names_when_they_alias(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Identity", ["r"], ["a"]),
        node("Identity", ["r"], ["b"]),
        node("Identity", ["x"], ["c"]),
    ]
    model = model_of(nodes, {"x": [1, 3]}, ["r", "a", "b", "c"])
    x = np.asarray([[-1.0, 0.0, 2.0]], np.float32)
    graph = imported(tmp_path, model)
    verify(graph)
    assert [v.name for v in graph.outputs] == ["r", "a", "b", "c"]
    results = run(graph, {"x": x})
    for name in "rab":
        np.testing.assert_array_equal(results[name], np.maximum(x, 0))
    np.testing.assert_array_equal(results["c"], x)


def test_weights_share_one_constant_and_keep_their_name(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], ["a"], transB=1), node("Gemm", ["a", "w"], ["y"], transB=1)]
    graph = imported(tmp_path, model_of(nodes, {"x": [1, 4]}, ["y"], {"w": np.eye(4, dtype=np.float32)}))
    assert [v.name for v in graph.constants] == ["w"]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad(auto_pad: str, stride: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    nodes = [node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[stride, stride])]
    model = model_of(nodes, {"x": ["n", 2, 7, 10]}, ["y"], {"w": rng.normal(size=(3, 2, 3, 4)).astype(np.float32)})
    agrees(tmp_path, model, {"x": rng.normal(size=(2, 2, 7, 10)).astype(np.float32)})


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("extent", "pad"), [(7, 0), (8, 1), (9, 1)])
def test_ceil_mode(op: str, extent: int, pad: int, tmp_path: Path) -> None:
    nodes = [node(op, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[pad] * 4, ceil_mode=1)]
    x = np.random.default_rng(2).normal(size=(1, 2, extent, extent)).astype(np.float32)
    agrees(tmp_path, model_of(nodes, {"x": [1, 2, extent, extent]}, ["y"]), {"x": x})


def test_three_dimensional_convolution_is_refused(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 2, 3, 3, 3), np.float32)}
    model = model_of([node("Conv", ["x", "w"], ["y"])], {"x": [1, 2, 9, 9, 9]}, ["y"], weights)
    with pytest.raises(UnsupportedOp, match=r"node 'y' \(Conv, opset 17\): input of rank 5; supported: "):
        imported(tmp_path, model)
