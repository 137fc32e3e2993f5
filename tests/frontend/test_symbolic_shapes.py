"""Tensors of symbolic shape as exporters write them (ranges, masks, tables, indices), at every extent like onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from bevel.errors import UnsupportedOp
from bevel.ir.interp import run
from bevel.ir.serialize import dumps, loads
from bevel.ir.types import Dim
from bevel.ir.verify import verify
from bevel.passes.canonicalize import canonicalize
from tests.frontend.onnx_files import imported, model_of, save

I64 = np.int64
node = helper.make_node
BOUND = 12
SEQ = Dim("seq", 1, BOUND)
CONSTANTS = {
    "zero": np.asarray(0, I64),
    "one": np.asarray(1, I64),
    "minus": np.asarray(-1, I64),
    "at0": np.asarray([0], I64),
    "at1": np.asarray([1], I64),
    "at2": np.asarray([2], I64),
    "free": np.asarray([-1], I64),
    "table": np.arange(2 * 16 * 3, dtype=np.float32).reshape(2, 16, 3),
    "low": np.asarray(-1e4, np.float32),
    "none": np.asarray(0, np.float32),
    "quarter": np.full((1, 1, 1), 0.25, np.float32),
    "row": np.asarray([1, -1], I64),
    "column": np.asarray([-1, 1], I64),
}
LENGTH = [node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "at1"], ["length"], axis=0)]
COUNT = [*LENGTH, node("Squeeze", ["length"], ["count"])]
RANGE = [*COUNT, node("Range", ["zero", "count", "one"], ["places"])]

# Each computes y from x [2, seq, 3].
PATTERNS: dict[str, list[onnx.NodeProto]] = {
    "table cut to the length": [
        *LENGTH,
        node("Slice", ["table", "at0", "length", "at1"], ["part"]),
        node("Add", ["x", "part"], ["y"]),
    ],
    "causal mask from a range": [
        *RANGE,
        node("Reshape", ["places", "row"], ["keys"]),
        node("Reshape", ["places", "column"], ["queries"]),
        node("Greater", ["keys", "queries"], ["hidden"]),
        node("Where", ["hidden", "low", "none"], ["mask"]),
        node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        node("MatMul", ["x", "xt"], ["scores"]),
        node("Add", ["scores", "mask"], ["y"]),
    ],
    "constant of shape": [
        *LENGTH,
        node("Concat", ["at1", "length", "at1"], ["wanted"], axis=0),
        node("ConstantOfShape", ["wanted"], ["ones"], value=helper.make_tensor("v", 1, [1], [2.5])),
        node("Mul", ["x", "ones"], ["y"]),
    ],
    "expand by a shape with a choice": [
        *LENGTH,
        node("Concat", ["at2", "length", "free"], ["asked"], axis=0),
        node("Equal", ["asked", "free"], ["open"]),
        node("Where", ["open", "at1", "asked"], ["wanted"]),
        node("Expand", ["quarter", "wanted"], ["grown"]),
        node("Add", ["x", "grown"], ["y"]),
    ],
    "first token": [node("Gather", ["x", "zero"], ["y"], axis=1)],
    "last token": [node("Gather", ["x", "minus"], ["y"], axis=1)],
    "tokens by place": [
        *RANGE,
        node("Gather", ["x", "places"], ["y"], axis=1),
    ],
    "heads and back": [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "at1", "at2"], ["length"]),
        node("Concat", ["at2", "length", "at1", "free"], ["split"], axis=0),
        node("Reshape", ["x", "split"], ["heads"]),
        node("Transpose", ["heads"], ["moved"], perm=[0, 2, 1, 3]),
        node("Transpose", ["moved"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "shape"], ["y"]),
    ],
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_at_every_extent(tmp_path: Path, name: str) -> None:
    """One import, run at every extent, is what onnxruntime computes; it survives canonicalization, checking and saving."""
    model = model_of(PATTERNS[name], {"x": [2, "seq", 3]}, ["y"], CONSTANTS)
    graph = canonicalize(imported(tmp_path, model, dims={"seq": (1, BOUND)}))
    verify(graph)
    graph = loads(dumps(graph), "saved")
    assert not {"Shape", "Range", "ConstantOfShape"} & {n.op for n in graph.nodes}
    session = onnxruntime.InferenceSession(str(save(tmp_path / "m.onnx", model)), providers=["CPUExecutionProvider"])
    for extent in (1, 2, 7, BOUND):
        feeds: dict[str, Any] = {"x": np.random.default_rng(extent).normal(size=(2, extent, 3)).astype(np.float32)}
        (expected,) = session.run(None, feeds)
        np.testing.assert_allclose(run(graph, feeds)["y"], expected, rtol=1e-6, atol=1e-6)


def test_extents_stay_symbolic(tmp_path: Path) -> None:
    model = model_of(PATTERNS["causal mask from a range"], {"x": [2, "seq", 3]}, ["y"], CONSTANTS)
    graph = imported(tmp_path, model, dims={"seq": (1, BOUND)})
    assert graph.outputs[0].type.shape == (2, SEQ, SEQ)


def test_bound_extents_leave_constants(tmp_path: Path) -> None:
    """With a number for the extent the same model has no mask to compute."""
    model = model_of(PATTERNS["causal mask from a range"], {"x": [2, "seq", 3]}, ["y"], CONSTANTS)
    graph = imported(tmp_path, model, dims={"seq": 5})
    assert {n.op for n in graph.nodes} == {"Transpose", "MatMul", "Add"}


@pytest.mark.parametrize(
    ("nodes", "bounds", "message"),
    [
        (RANGE, None, r"Range.*dimension seq.*--dim seq=LO:HI"),
        ([*COUNT, node("Range", ["count", "count", "one"], ["places"])], (1, BOUND), r"Range.*0 up to a dimension"),
        (PATTERNS["table cut to the length"], (1, 17), r"Slice.*seq\(1\.\.17\)"),
        ([*COUNT, node("Mul", ["count", "count"], ["places"])], (1, BOUND), r"arithmetic on a symbolic dimension"),
    ],
)
def test_what_has_no_answer_is_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], bounds: tuple[int, int] | None, message: str
) -> None:
    result = nodes[-1].output[0]
    model = model_of(nodes, {"x": [2, "seq", 3]}, [result], CONSTANTS)
    with pytest.raises(UnsupportedOp, match=message):
        imported(tmp_path, model, dims={"seq": bounds} if bounds else {})
