"""Control flow with a course known at import is converted in place and agrees with onnxruntime; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.errors import UnsupportedModel, UnsupportedOp
from tests.frontend.onnx_files import agrees, imported, model_of

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


def info(name: str, elem: int = FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem, shape)


def branch(name: str, op: str, constant: float) -> onnx.GraphProto:
    """op(x of the outer graph, a constant of its own)."""
    nodes = [helper.make_node(op, ["x", "c"], ["inner"])]
    return helper.make_graph(nodes, name, [], [info("inner")], [numpy_helper.from_array(np.float32(constant), "c")])


def if_node(condition: str) -> onnx.NodeProto:
    return helper.make_node("If", [condition], ["y"], then_branch=branch("a", "Add", 2.5), else_branch=branch("b", "Mul", -3.0))


X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("condition", [True, False])
def test_if_of_a_constant(condition: bool, tmp_path: Path) -> None:
    file = model_of([if_node("k")], {"x": (3, 4)}, ["y"], {"k": np.array(condition)})
    assert [n.op for n in agrees(tmp_path, file, {"x": X}).nodes] != ["If"]


def test_if_of_a_shape_inside_an_if(tmp_path: Path) -> None:
    """The condition is shape arithmetic; both subgraphs name their values alike."""
    inner = helper.make_graph([if_node("k")], "outer", [], [info("y")])
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Equal", ["n", "three"], ["k"]),
        helper.make_node("If", ["k"], ["z"], then_branch=inner, else_branch=branch("other", "Sub", 1.0)),
        helper.make_node("Add", ["z", "x"], ["w"]),
    ]
    agrees(tmp_path, model_of(nodes, {"x": (3, 4)}, ["w"], {"zero": np.int64(0), "three": np.int64(3)}), {"x": X})


def test_if_of_data_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "c0"], ["k"]),
        if_node("k"),
    ]
    with pytest.raises(UnsupportedOp, match=r"\(If, opset 17\): condition 'k' is computed by the model"):
        imported(tmp_path, model_of(nodes, {"x": (3, 4)}, ["y"], {"c0": np.float32(0)}))


def loop(trips: Any, keep_going: bool | None, limit: int) -> onnx.ModelProto:
    """state <- state * 0.5 + x while iteration < limit; collects every state."""
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state", "half"], ["halved"]),
            helper.make_node("Add", ["halved", "x"], ["next"]),
            helper.make_node("Less", ["i", "limit"], ["going"]),
            helper.make_node("Identity", ["next"], ["collected"]),
        ],
        "body",
        [info("i", INT64, []), info("cond", BOOL, []), info("state", FLOAT, [3, 4])],
        [info("going", BOOL, []), info("next", FLOAT, [3, 4]), info("collected", FLOAT, [3, 4])],
        [numpy_helper.from_array(np.float32(0.5), "half"), numpy_helper.from_array(np.int64(limit), "limit")],
    )
    constants: dict[str, Any] = {}
    names = ["", ""]
    if trips is not None:
        constants["trips"], names[0] = np.int64(trips), "trips"
    if keep_going is not None:
        constants["first"], names[1] = np.array(keep_going), "first"
    return model_of(
        [helper.make_node("Loop", [*names, "x"], ["last", "all"], body=body)], {"x": (3, 4)}, ["last", "all"], constants
    )


@pytest.mark.parametrize(("trips", "keep_going", "limit"), [(4, True, 99), (7, None, 2), (None, True, 3)])
def test_loops_are_unrolled(trips: int | None, keep_going: bool | None, limit: int, tmp_path: Path) -> None:
    agrees(tmp_path, loop(trips, keep_going, limit), {"x": X})


def test_a_loop_that_never_runs_keeps_its_state(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match="a loop that never runs and collects results"):
        imported(tmp_path, loop(0, True, 9))


def test_a_loop_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=r"nodes of subgraphs; supported: \d+"):
        imported(tmp_path, loop(2**62, True, 2**62))


def test_scan_runs_along_its_axes_and_directions(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["sum", "row"], ["next"]), helper.make_node("Neg", ["next"], ["out"])],
        "body",
        [info("sum", FLOAT, [3]), info("row", FLOAT, [3])],
        [info("next", FLOAT, [3]), info("out", FLOAT, [3])],
    )
    options = {"scan_input_axes": [1], "scan_input_directions": [1], "scan_output_axes": [1], "scan_output_directions": [1]}
    node = helper.make_node("Scan", ["zero", "x"], ["total", "sums"], num_scan_inputs=1, body=body, **options)
    agrees(tmp_path, model_of([node], {"x": (3, 4)}, ["total", "sums"], {"zero": np.zeros(3, np.float32)}), {"x": X})


def test_a_subgraph_that_takes_other_values_is_malformed(tmp_path: Path) -> None:
    file = loop(2, True, 9)
    del file.graph.node[0].attribute[0].g.input[2]
    with pytest.raises(UnsupportedModel, match="a subgraph takes 2 values, given 3"):
        imported(tmp_path, file)
