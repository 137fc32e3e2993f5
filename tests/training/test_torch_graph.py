# ruff: noqa: E402  # what torch is needed for is imported once it is known to be there
"""Every operator that can be trained through computes in torch what the op table's reference computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `export`)")

from bevel.ir import interp
from bevel.ir.graph import Graph, Value
from bevel.ir.ops import lookup
from bevel.ir.ops.convolution import ConvAttrs, ConvTransposeAttrs
from bevel.ir.ops.index import GatherAttrs
from bevel.ir.ops.movement import (
    BlockAttrs,
    ConcatAttrs,
    ExpandAttrs,
    PadAttrs,
    ReshapeAttrs,
    ReverseAttrs,
    SliceAttrs,
    TileAttrs,
    TransposeAttrs,
)
from bevel.ir.ops.normalize import AxisAttrs, GroupNormAttrs, LayerNormAttrs, ReduceAttrs, RmsNormAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.types import F32, TensorType
from bevel.training.torch_graph import FUNCTIONS, FloatNet
from tests.training.nets import images, network

IMAGE = (2, 4, 8, 6)
UNEVEN = (0, 1, 2, 1)
# Operators by the shapes of their constant operands, their attributes, and whether their operand must be positive.
CASES: list[tuple[str, tuple[tuple[int, ...], ...], Any]] = [
    ("Conv", ((6, 4, 3, 2), (6,)), ConvAttrs((3, 2), (2, 1), UNEVEN, (1, 2))),
    ("Conv", ((4, 2, 3, 3),), ConvAttrs((3, 3), pads=(1, 1, 1, 1), groups=2)),
    ("Gemm", ((5, 6), (5,)), None),
    ("MatMul", ((6, 3),), None),
    ("ConvTranspose", ((4, 3, 3, 3), (3,)), ConvTransposeAttrs((3, 3), (2, 2), UNEVEN, output_padding=(1, 1))),
    ("ConvTranspose", ((4, 2, 2, 3), (4,)), ConvTransposeAttrs((2, 3), (3, 3), groups=2, output_padding=(2, 1))),
    ("PRelu", ((4, 1, 1),), None),
    ("MaxPool", (), PoolAttrs((3, 2), (2, 2), UNEVEN)),
    ("MaxPool", (), PoolAttrs((2, 2), (1, 1), dilations=(2, 2))),
    ("AveragePool", (), AveragePoolAttrs((3, 2), (2, 2), UNEVEN)),
    ("AveragePool", (), AveragePoolAttrs((3, 3), (1, 1), (1, 1, 1, 1), count_include_pad=True)),
    ("Softmax", (), AxisAttrs(1)),
    ("LogSoftmax", (), AxisAttrs(3)),
    ("BatchNormalization", ((4,), (4,), (4,), (4,)), None),
    ("LayerNormalization", ((8, 6), (8, 6)), LayerNormAttrs(2)),
    ("RMSNormalization", ((6,),), RmsNormAttrs(3)),
    ("GroupNormalization", ((4,), (4,)), GroupNormAttrs(2)),
    ("Reshape", (), ReshapeAttrs((2, 32, 6))),
    ("Transpose", (), TransposeAttrs((0, 2, 3, 1))),
    ("Slice", (), SliceAttrs((0, 1, 2, 0), (-1, 3, 8, -1), (1, 1, 3, 1))),
    *(("Pad", (), PadAttrs((0, 0, 1, 2), (0, 1, 0, 3), 0.5, mode)) for mode in ("constant", "edge", "reflect", "wrap")),
    ("Reverse", (), ReverseAttrs((1, 3))),
    ("Tile", (), TileAttrs((1, 2, 1, 3))),
    *(("DepthToSpace", (), BlockAttrs(2, mode)) for mode in ("DCR", "CRD")),
    *(("SpaceToDepth", (), BlockAttrs(2, mode)) for mode in ("DCR", "CRD")),
    ("Concat", ((2, 3, 8, 6),), ConcatAttrs(1)),
    *((name, (), ReduceAttrs((2, 3))) for name in sorted(FUNCTIONS) if name.startswith("Reduce")),
    ("ReduceMean", (), ReduceAttrs((1,), keepdims=False)),
    *((name, ((4, 1, 6),), None) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow")),
]
COVERED = {name for name, _, _ in CASES}
CASES += [(name, (), None) for name in sorted(FUNCTIONS) if name not in COVERED | {"Expand", "Gather"}]
POSITIVE = ("Log", "Sqrt", "Pow", "Power", "Div", "Reciprocal", "BatchNormalization")


def check(build: Callable[[Graph, Value], Value], shape: tuple[int, ...] = IMAGE, *, positive: bool = False) -> None:
    graph = Graph("one")
    x = graph.add_input("x", TensorType(shape, F32))
    graph.set_outputs([build(graph, x)])
    data = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 2
    data = np.abs(data) + np.float32(0.1) if positive else data
    expected = interp.run(graph, {"x": data})[graph.outputs[0].name]
    with torch.no_grad():
        (found,) = FloatNet(graph)({"x": torch.from_numpy(data)})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "constants", "attrs"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_computes_what_the_reference_does(op: str, constants: tuple[tuple[int, ...], ...], attrs: Any) -> None:
    def build(graph: Graph, x: Value) -> Value:
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in constants]
        arrays = [np.abs(a) + np.float32(0.1) for a in arrays] if op in POSITIVE else arrays
        operands = [x, *(graph.add_constant(f"c{i}", a) for i, a in enumerate(arrays))]
        return graph.add_node(op, operands, attrs).output

    check(build, positive=op in POSITIVE)


def test_expands() -> None:
    check(lambda graph, x: graph.add_node("Expand", [x], ExpandAttrs((2, 3, 4))).output, (3, 1))


def test_gathers_also_from_the_end() -> None:
    def build(graph: Graph, x: Value) -> Value:
        indices = graph.add_constant("i", np.asarray([[0, -1], [2, 1]], np.int64))
        return graph.add_node("Gather", [x, indices], GatherAttrs(1)).output

    check(build)


def test_every_function_has_a_case() -> None:
    assert {name for name, _, _ in CASES} | {"Expand", "Gather"} == set(FUNCTIONS)
    assert all(lookup(name).reference is not None for name in FUNCTIONS)


def test_a_network_computes_what_the_interpreter_does() -> None:
    graph, x = network(), images(5)
    expected = interp.run(graph, {"x": x})["logits"]
    with torch.no_grad():
        exact, rough = (
            FloatNet(graph, dtype)({"x": torch.from_numpy(x)})[0].numpy() for dtype in (torch.float32, torch.bfloat16)
        )
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(rough - expected).max() < 0.05 * np.abs(expected).max()
