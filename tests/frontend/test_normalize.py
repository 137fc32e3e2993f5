"""Normalizations and reductions whose meaning depends on the operator set, against onnxruntime; what is refused says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from bevel.errors import UnsupportedOp
from bevel.frontend import import_onnx
from bevel.ir.interp import run
from bevel.passes.canonicalize import canonicalize

Array = npt.NDArray[Any]
RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 6, 4, 3)).astype(np.float32)


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def model(op: str, constants: list[Array], opset: int, outputs: int = 1, x: Array = X, **attributes: Any) -> onnx.ModelProto:
    names = [f"c{i}" for i in range(len(constants))]
    results = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], results, **attributes)],
        op,
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(a, n) for a, n in zip(constants, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


AGREE: dict[str, onnx.ModelProto] = {
    "softmax of rows before 13": model("Softmax", [], 11, axis=1),
    "log softmax of rows before 13": model("LogSoftmax", [], 11, axis=2),
    "hardmax of rows before 13": model("Hardmax", [], 11),
    "softmax since 13": model("Softmax", [], 13),
    "axes as attribute": model("ReduceSum", [], 11, axes=[-1, 1], keepdims=0),
    "axes as operand": model("ReduceSum", [i64(-1, 1)], 13, keepdims=0),
    "no axes": model("ReduceL2", [], 13),
    "no axes, no reduction": model("ReduceMax", [], 18, noop_with_empty_axes=1),
    "scale over the last axes": model("LayerNormalization", [floats(4, 3), floats(4, 3)], 17, axis=2),
    "scale that broadcasts": model("LayerNormalization", [floats(3), floats(4, 1)], 17, axis=2),
    "statistics": model("LayerNormalization", [floats(3), floats(3)], 17, outputs=3),
    "simplified": model("SimplifiedLayerNormalization", [floats(3)], 17, axis=-1),
    "instance": model("InstanceNormalization", [floats(6), floats(6)], 17, epsilon=0.01),
    "groups by channel": model("GroupNormalization", [floats(6), floats(6)], 21, num_groups=3),
    "first norm": model("LpNormalization", [], 17, axis=1, p=1),
    "second norm of nothing": model("LpNormalization", [], 17, x=np.zeros((2, 3), np.float32)),
    "three spatial axes": model("GlobalAveragePool", [], 17, x=floats(2, 3, 4, 5, 2)),
    "global maximum of a line": model("GlobalMaxPool", [], 17, x=floats(2, 3, 9)),
    "global second norm": model("GlobalLpPool", [], 17),
    "k as operand": model("TopK", [i64(2)], 11, outputs=2, axis=1, largest=0),
    "mean and variance": model("MeanVarianceNormalization", [], 13),
}


@pytest.mark.parametrize("name", AGREE)
def test_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the peer; install the extra `peers`")
    path = tmp_path / "model.onnx"
    onnx.save(AGREE[name], path)
    graph = canonicalize(import_onnx(path))
    shape = [d.dim_value for d in AGREE[name].graph.input[0].type.tensor_type.shape.dim]
    x = np.zeros(shape, np.float32) if "nothing" in name else np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = run(graph, {"x": x})
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    for value, want in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(found[value.name], want, rtol=2e-5, atol=2e-6)


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "third norm": (model("LpNormalization", [], 22, p=3), r"LpNormalization.*p=3"),
    "too many": (model("TopK", [i64(7)], 11, outputs=2, axis=1), r"TopK.*k=7 of an axis of 6"),
    "uneven groups": (model("GroupNormalization", [floats(6), floats(6)], 21, num_groups=4), r"num_groups=4 for 6 channels"),
    "half statistics": (model("LayerNormalization", [floats(3)], 17, stash_type=10), r"stash_type=10"),
    "axis outside": (model("Softmax", [], 13, axis=4), r"axis 4 outside rank 4"),
    "mean of nothing": (model("ReduceMean", [], 13, x=floats(0, 3)), r"ReduceMean of no elements"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_operator_and_attribute(name: str, tmp_path: Path) -> None:
    proto, message = REFUSED[name]
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOp, match=message):
        import_onnx(tmp_path / "model.onnx")
