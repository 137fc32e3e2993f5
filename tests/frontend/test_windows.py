"""Windows of one and two dimensions, products and recurrent layers as ONNX writes them, against onnxruntime."""

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
from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.passes.canonicalize import canonicalize

Array = npt.NDArray[Any]
RNG = np.random.default_rng(2)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def compare(tmp_path: Path, nodes: list[Any], x: Array, constants: dict[str, Array], outputs: int = 1, **dims: Any) -> Graph:
    """The canonical graph of `nodes` from "x" to "y0", "y1"..., whose results equal onnxruntime's."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the peer; install the extra `peers`")
    shape = [dims["name"] if i == dims.get("axis") else d for i, d in enumerate(x.shape)]
    names = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=name) for name in names],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    imported = canonicalize(import_onnx(path))
    found = run(imported, {"x": x})
    for name, expected in zip(names, session.run(None, {"x": x}), strict=True):
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    return imported


def node(op: str, *inputs: str, outputs: tuple[str, ...] = ("y0",), **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def test_a_chain_over_sequences_stays_in_images(tmp_path: Path) -> None:
    """Between the first layer and the last no Reshape is left, and normalizations are folded."""
    pads = {"pads": [1, 1], "kernel_shape": [3]}
    nodes = [
        node("Conv", "x", "w", outputs=("a",), **pads),
        node("BatchNormalization", "a", "s", "b", "m", "v", outputs=("n",)),
        node("Relu", "n", outputs=("r",)),
        node("Conv", "r", "w2", outputs=("c",), **pads),
        node("Add", "c", "r", outputs=("t",)),
        node("MaxPool", "t", kernel_shape=[2], strides=[2]),
    ]
    stats = {name: normal(4) for name in "sbm"} | {"v": np.abs(normal(4)) + 1}
    found = compare(tmp_path, nodes, normal(2, 3, 10), {"w": normal(4, 3, 3), "w2": normal(4, 4, 3), **stats})
    assert [n.op for n in found.nodes] == ["Reshape", "Conv", "Relu", "Conv", "Add", "MaxPool", "Reshape"]


POOLS: list[tuple[str, dict[str, Any]]] = [
    ("MaxPool", {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [3], "auto_pad": "SAME_LOWER", "strides": [2]}),
    ("MaxPool", {"kernel_shape": [3], "dilations": [2], "pads": [1, 2]}),
    ("AveragePool", {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1}),
    ("AveragePool", {"kernel_shape": [3], "strides": [2], "pads": [1, 0], "ceil_mode": 1, "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [4], "auto_pad": "SAME_UPPER", "strides": [3]}),
    ("LpPool", {"kernel_shape": [3], "p": 1}),
    ("LpPool", {"kernel_shape": [2], "p": 3, "pads": [1, 0]}),
    ("GlobalAveragePool", {}),
    ("GlobalMaxPool", {}),
]


@pytest.mark.parametrize(("op", "attributes"), POOLS, ids=lambda v: str(v))
@pytest.mark.parametrize("rank", [1, 2])
def test_pools(op: str, attributes: dict[str, Any], rank: int, tmp_path: Path) -> None:
    wide = {k: v * rank if isinstance(v, list) and k != "pads" else v for k, v in attributes.items()}
    if rank == 2 and "pads" in wide:
        before, after = wide["pads"]
        wide["pads"] = [before, 0, after, 1]
    compare(tmp_path, [node(op, "x", **wide)], normal(2, 3, *(10, 9)[:rank]), {})


@pytest.mark.parametrize("rank", [1, 2])
def test_positions_of_maxima(rank: int, tmp_path: Path) -> None:
    both = node("MaxPool", "x", outputs=("y0", "y1"), kernel_shape=[3] * rank, strides=[2] * rank)
    compare(tmp_path, [both], normal(2, 3, *(10, 9)[:rank]), {}, outputs=2)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2], "auto_pad": "SAME_UPPER"},
        {"strides": [2], "auto_pad": "SAME_LOWER"},
        {"strides": [3], "output_padding": [2], "pads": [1, 0]},
        {"dilations": [2], "group": 2},
        {"strides": [2], "output_shape": [13]},
    ],
    ids=str,
)
def test_transposed_convolution_of_sequences(attributes: dict[str, Any], tmp_path: Path) -> None:
    compare(
        tmp_path,
        [node("ConvTranspose", "x", "w", "b", **attributes)],
        normal(2, 4, 6),
        {"w": normal(4, 3, 3), "b": normal(3 * attributes.get("group", 1))},
    )


@pytest.mark.parametrize(("left", "right"), [((5,), (5, 3)), ((2, 4, 5), (5,)), ((5,), (5,)), ((5,), (2, 5, 3))])
def test_products_with_vectors(left: tuple[int, ...], right: tuple[int, ...], tmp_path: Path) -> None:
    compare(tmp_path, [node("MatMul", "x", "w")], normal(*left), {"w": normal(*right)})


def test_constant_factors_are_weights(tmp_path: Path) -> None:
    """On either side: [1,K,N] behind rows of any rank, and [M,K] before columns."""
    found = compare(tmp_path, [node("MatMul", "x", "w")], normal(2, 4, 5), {"w": normal(1, 5, 3)})
    assert [n.op for n in found.nodes] == ["Gemm"]
    found = compare(tmp_path, [node("MatMul", "w", "x")], normal(2, 4, 5), {"w": normal(3, 4)})
    assert [n.op for n in found.nodes] == ["Transpose", "Gemm", "Transpose"]


def test_a_pointwise_convolution_takes_any_length(tmp_path: Path) -> None:
    found = compare(
        tmp_path, [node("Conv", "x", "w", "b")], normal(2, 4, 7), {"w": normal(3, 4, 1), "b": normal(3)}, axis=2, name="time"
    )
    assert [n.op for n in found.nodes] == ["Transpose", "Gemm", "Transpose"]


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op: str, tmp_path: Path) -> None:
    """The product with the inputs is a Gemm over the whole sequence."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 6
    constants = {"w": normal(2, gates, 5), "r": normal(2, gates, 6), "b": normal(2, 2 * gates)}
    flags = {"linear_before_reset": 1} if op == "GRU" else {}
    layer = node(op, "x", "w", "r", "b", outputs=("y0", "y1"), hidden_size=6, direction="bidirectional", **flags)
    found = compare(tmp_path, [layer], normal(7, 2, 5), constants, outputs=2)
    assert [n.op for n in found.nodes] == ["Gemm", op]


def test_three_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=r"Conv.*rank 5; supported: one or two spatial dimensions"):
        compare(tmp_path, [node("Conv", "x", "w")], normal(1, 2, 4, 4, 4), {"w": normal(2, 2, 1, 1, 1)})
