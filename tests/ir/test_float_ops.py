"""Every FLOAT operator computes what onnxruntime computes, edge attributes included."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.ops import Call, lookup, table
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import AxisAttrs, BatchNormAttrs, ReduceAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.types import TensorType, elem_of_dtype
from bevel.ir.verify import verify
from tests.ir.float_case import Case

Array = npt.NDArray[Any]


def window(kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int, int, int], dilations: tuple[int, int]) -> Any:
    return {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}


def as_onnx(w: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kernel_shape": w["kernel"], "strides": w["strides"], "pads": w["pads"], "dilations": w["dilations"], **more}


WINDOWS = [
    window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    window((3, 2), (2, 1), (0, 1, 2, 0), (1, 1)),
    window((2, 3), (1, 2), (1, 0, 0, 2), (3, 2)),
    window((1, 5), (3, 3), (0, 4, 0, 1), (1, 1)),
    window((7, 9), (1, 1), (0, 0, 0, 0), (1, 1)),
]
LINE = np.array([-np.inf, -1e4, -90, -6, -3, -1.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 3, 5.999, 6, 20, 90, np.inf], np.float32)
WIDE = np.linspace(-12, 12, 97, dtype=np.float32)
I64 = np.array([[-7, 7, 5, -5, 0]], np.int64)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def conv_cases() -> list[Case]:
    cases = []
    for w in WINDOWS:
        for groups, channels, out, bias in ((1, 3, 5, True), (2, 4, 6, False), (4, 4, 4, True), (2, 2, 4, True)):
            shapes = [(2, channels, 7, 9), (out, channels // groups, *w["kernel"]), *([(out,)] if bias else [])]
            cases.append(Case("Conv", shapes, ConvAttrs(**w, groups=groups), as_onnx(w, group=groups)))
    return cases


def pool_cases() -> list[Case]:
    cases = []
    for w in WINDOWS:
        cases.append(Case("MaxPool", [(2, 3, 7, 9)], PoolAttrs(**w), as_onnx(w)))
        for count in (False, True):
            attrs = AveragePoolAttrs(**w, count_include_pad=count)
            cases.append(Case("AveragePool", [(2, 3, 7, 9)], attrs, as_onnx(w, count_include_pad=int(count))))
    return [*cases, Case("GlobalAveragePool", [(2, 3, 7, 9)]), Case("GlobalAveragePool", [(1, 1, 1, 1)])]


def broadcast_cases() -> list[Case]:
    shapes = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), ()), ((3, 1), (2, 1, 4)), ((1,), (2, 3)), ((0, 3), (1, 3))]
    cases = [Case(op, [a, b]) for op in ("Add", "Sub", "Mul", "Div") for a, b in shapes]
    return cases + [Case(op, [I64, np.array([[2, -2, 3, 3, 1]], np.int64)]) for op in ("Add", "Sub", "Mul", "Div")]


def unary_cases() -> list[Case]:
    names = {name: "" for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Gelu", "HardSwish", "Neg", "Abs")} | {
        "Silu": "Swish"
    }
    # HardSwish and SiLU of infinity are NaN or a matter of taste in every library; real activations are finite.
    finite = {"Silu", "HardSwish", "Gelu"}
    cases = [Case(op, [LINE[1:-1] if op in finite else LINE], onnx_op=onnx) for op, onnx in names.items()]
    cases += [Case(op, [WIDE.reshape(1, 97)], onnx_op=onnx) for op, onnx in names.items()]
    cases += [Case("Sqrt", [np.abs(LINE)]), Case("Sqrt", [(0,)])]
    f32 = np.float32
    cases.append(Case("Clip", [LINE], ClipAttrs(0.0, 6.0), extra=[np.array(0, f32), np.array(6, f32)]))
    cases.append(Case("Clip", [LINE[1:-1]], ClipAttrs(lo=-1.5), extra=[np.array(-1.5, f32)]))
    cases.append(Case("Clip", [LINE[1:-1]], ClipAttrs(hi=0.1), extra=[None, np.array(0.1, f32)]))
    return cases


def product_cases() -> list[Case]:
    cases = [Case("Gemm", [(5, 7), (3, 7)], onnx={"transB": 1}), Case("Gemm", [(5, 7), (3, 7), (3,)], onnx={"transB": 1})]
    pairs = [((4, 3), (3, 2)), ((2, 4, 3), (2, 3, 5)), ((2, 1, 4, 3), (5, 3, 2)), ((1, 3), (3, 1))]
    return cases + [Case("MatMul", [a, b]) for a, b in pairs]


def normalize_cases() -> list[Case]:
    rng = np.random.default_rng(3)
    stats = [rng.standard_normal(3).astype(np.float32) for _ in range(3)] + [rng.random(3, np.float32) + np.float32(0.01)]
    cases = [Case("Softmax", [(2, 3, 5)], AxisAttrs(axis), {"axis": axis}) for axis in range(3)]
    cases.append(Case("Softmax", [np.array([[1e4, -1e4, 1e4], [88, 89, -200]], np.float32)], AxisAttrs(1), {"axis": 1}))
    shapes = ((2, 3, 4, 5), (2, 3))
    cases += [Case("BatchNormalization", [shape, *stats], BatchNormAttrs(1e-3), {"epsilon": 1e-3}) for shape in shapes]
    for axes, keep in (((2, 3), True), ((2, 3), False), ((1,), False), ((0, 1, 2, 3), True), ((), True)):
        onnx = {"keepdims": int(keep), "noop_with_empty_axes": 1}
        cases.append(Case("ReduceMean", [(2, 3, 4, 5)], ReduceAttrs(axes, keep), onnx, [i64(*axes)]))
    return cases


def movement_cases() -> list[Case]:
    x = (2, 3, 4)
    cases = [
        Case("Reshape", [x], ReshapeAttrs((4, 6)), extra=[i64(4, 6)]),
        Case("Reshape", [(1,)], ReshapeAttrs(()), extra=[i64()]),
        Case("Transpose", [x], TransposeAttrs((2, 0, 1)), {"perm": (2, 0, 1)}),
        Case(
            "Slice",
            [x],
            SliceAttrs((1, 0, 1), (2, -1, 4), (1, 2, 2)),
            extra=[i64(1, 0, 1), i64(2, 99, 4), i64(0, 1, 2), i64(1, 2, 2)],
        ),
        Case("Slice", [x], SliceAttrs((0, 3, 0), (-1, 3, -1), (1, 1, 1)), extra=[i64(3), i64(3), i64(1)]),
        Case("Concat", [(2, 3), (2, 1), (2, 4)], ConcatAttrs(1), {"axis": 1}),
        Case("Concat", [I64, I64], ConcatAttrs(0), {"axis": 0}),
    ]
    for value in (0.0, -2.5):
        attrs = PadAttrs((1, 0, 2), (0, 3, 1), value)
        cases.append(Case("Pad", [x], attrs, extra=[i64(1, 0, 2, 0, 3, 1), np.array(value, np.float32)]))
    return cases


# Files beside this one, each with a function `cases() -> list[Case]`.
FAMILIES: tuple[str, ...] = (
    "cases_elementwise",
    "cases_movement",
    "cases_nms",
    "cases_normalize",
    "cases_recurrent",
    "cases_window",
)

CASES = [
    *conv_cases(),
    *pool_cases(),
    *broadcast_cases(),
    *unary_cases(),
    *product_cases(),
    *normalize_cases(),
    *movement_cases(),
    *(case for name in FAMILIES for case in importlib.import_module(f"tests.ir.{name}").cases()),
]


def test_every_float_operator_has_a_case() -> None:
    assert {case.op for case in CASES} == {op.name for op in table() if Level.FLOAT in op.levels}


def onnxruntime_results(case: Case, arrays: list[Array]) -> list[Array]:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the peer; install the extra `peers`")
    names = [f"x{i}" for i in range(len(arrays))]
    extra = ["" if a is None else f"e{i}" for i, a in enumerate(case.extra)]
    results = [f"y{i}" for i in range(case.outputs)]
    if case.onnx_op == "Swish":  # newer than what the runtime has to know: x * Sigmoid(x)
        nodes = [helper.make_node("Sigmoid", names, ["s"]), helper.make_node("Mul", [*names, "s"], results)]
    elif case.op == "CumProd":  # the same: the exponential of the running sum of logarithms
        nodes = [
            helper.make_node("Log", names, ["l"]),
            helper.make_node("CumSum", ["l", *extra], ["s"]),
            helper.make_node("Exp", ["s"], results),
        ]
    else:
        wires = [*names, *extra]
        if case.operands:
            wires = ["" if o is None else names[o] if isinstance(o, int) else f"o{i}" for i, o in enumerate(case.operands)]
        nodes = [helper.make_node(case.onnx_op or case.op, wires, results, **case.onnx)]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    constants = [numpy_helper.from_array(a, n) for n, a in zip(extra, case.extra, strict=True) if a is not None]
    constants += [numpy_helper.from_array(o, f"o{i}") for i, o in enumerate(case.operands) if isinstance(o, np.ndarray)]
    graph = helper.make_graph(nodes, case.op, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, dict(zip(names, arrays, strict=True)))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_onnxruntime(case: Case) -> None:
    arrays = case.arrays()
    graph = Graph(case.op)
    values = [graph.add_input(f"x{i}", TensorType(a.shape, elem_of_dtype(a.dtype))) for i, a in enumerate(arrays)]
    graph.set_outputs(graph.add_node(case.op, values, case.attrs, names=[f"y{i}" for i in range(case.outputs)]).outputs)
    verify(graph)
    # Straight through the row: the boundary refuses the infinities that LINE feeds on purpose.
    call = Call(case.attrs, tuple(v.type for v in values), tuple(v.type for v in graph.outputs))
    with np.errstate(all="ignore"):
        results = lookup(case.op).reference(call, *arrays)
    results = results if isinstance(results, tuple) else (results,)
    through = (
        run(graph, {v.name: a for v, a in zip(values, arrays, strict=True)})
        if all(np.isfinite(a).all() for a in arrays)
        else {v.name: a for v, a in zip(graph.outputs, results, strict=True)}
    )
    for value, found, expected in zip(graph.outputs, results, onnxruntime_results(case, arrays), strict=True):
        assert found.shape == expected.shape == value.type.static_shape
        assert found.dtype == expected.dtype == value.type.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(through[value.name], found)
