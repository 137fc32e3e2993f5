"""Reductions, normalization and selection along an axis, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.normalize import AxisAttrs, GroupNormAttrs, LayerNormAttrs, LrnAttrs, ReduceAttrs, RmsNormAttrs
from bevel.ir.ops.reduce import ScanAttrs
from bevel.ir.ops.select_axis import ArgAttrs, TopKAttrs
from tests.ir.float_case import Case

Array = npt.NDArray[Any]

RNG = np.random.default_rng(5)
# Few different values, so that ties abound.
TIES = RNG.integers(-2, 3, (3, 7, 5)).astype(np.float32)
INTEGERS = RNG.integers(-40, 40, (2, 5, 3))


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def cases() -> list[Case]:
    return [*_reductions(), *_scans(), *_norms(), *_selections()]


def _reductions() -> list[Case]:
    found = []
    positive = RNG.uniform(0.1, 3, (2, 3, 4, 5)).astype(np.float32)
    for op in ("Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"):
        x = positive if op == "LogSum" else positive - np.float32(1.5)
        for axes, keep in (((2, 3), True), ((1,), False), ((0, 1, 2, 3), True)):
            found.append(Case(f"Reduce{op}", [x], ReduceAttrs(axes, keep), {"keepdims": int(keep)}, [i64(*axes)]))
    for op in ("Sum", "Max", "Min", "Prod", "SumSquare", "L1"):
        for x in (INTEGERS, INTEGERS.astype(np.int32)):
            found += [Case(f"Reduce{op}", [x], ReduceAttrs((1,), True), {}, [i64(1)])]
    found.append(Case("ReduceMax", [INTEGERS.astype(np.int8)], ReduceAttrs((2,), True), {}, [i64(2)]))
    found.append(Case("ReduceLogSumExp", [np.array([[1e3, 1e3], [-900, -901]], np.float32)], ReduceAttrs((1,)), {}, [i64(1)]))
    return found


def _scans() -> list[Case]:
    found = []
    for exclusive, reverse in ((False, False), (True, False), (False, True), (True, True)):
        onnx = {"exclusive": int(exclusive), "reverse": int(reverse)}
        found += [
            Case("CumSum", [x], ScanAttrs(1, exclusive, reverse), onnx, [np.array(1, np.int64)]) for x in ((2, 5, 3), INTEGERS)
        ]
    # onnxruntime has no CumProd: the logarithm's running sum stands in for it, see `onnxruntime_results`.
    positive = RNG.uniform(0.5, 2, (3, 6)).astype(np.float32)
    return [*found, Case("CumProd", [positive], ScanAttrs(1), {}, [np.array(1, np.int64)], opset=20)]


def _norms() -> list[Case]:
    x = RNG.uniform(-1, 4, (2, 6, 4, 5)).astype(np.float32)
    found = []
    for axis in (1, 3):
        scale, bias = (RNG.standard_normal(x.shape[axis:]).astype(np.float32) for _ in range(2))
        onnx = {"axis": axis, "epsilon": 1e-3}
        found.append(Case("LayerNormalization", [x, scale, bias], LayerNormAttrs(axis, 1e-3), onnx))
        found.append(Case("LayerNormalization", [x, scale], LayerNormAttrs(axis, 1e-3), onnx))
        statistics = LayerNormAttrs(axis, 1e-3, statistics=True)
        found.append(Case("LayerNormalization", [x, scale, bias], statistics, onnx, outputs=3))
        simplified = "SimplifiedLayerNormalization"
        found.append(Case("RMSNormalization", [x, scale], RmsNormAttrs(axis, 1e-3), onnx, onnx_op=simplified))
    affine = [RNG.standard_normal(6).astype(np.float32) for _ in range(2)]
    for groups in (1, 3, 6):
        onnx = {"num_groups": groups, "epsilon": 1e-3}
        found.append(Case("GroupNormalization", [x, *affine], GroupNormAttrs(groups, 1e-3), onnx, opset=21))
    found.append(Case("GroupNormalization", [x, *affine], GroupNormAttrs(6), {}, onnx_op="InstanceNormalization"))
    for size in (1, 3, 5):
        onnx = {"size": size, "alpha": 0.02, "beta": 0.6, "bias": 1.5}
        found.append(Case("LRN", [x], LrnAttrs(size, 0.02, 0.6, 1.5), onnx))
    steep = np.array([[1e4, -1e4, 1e4], [88, 89, -200]], np.float32)
    found += [Case("LogSoftmax", [(2, 3, 5)], AxisAttrs(axis), {"axis": axis}) for axis in range(3)]
    return [*found, Case("LogSoftmax", [steep], AxisAttrs(1), {"axis": 1})]


def _selections() -> list[Case]:
    found = [Case("Hardmax", [TIES], AxisAttrs(axis), {"axis": axis}) for axis in (0, 2)]
    for op in ("ArgMax", "ArgMin"):
        for axis, keep, last in ((0, True, False), (1, False, True), (2, True, True), (2, False, False)):
            onnx = {"axis": axis, "keepdims": int(keep), "select_last_index": int(last)}
            found.append(Case(op, [TIES], ArgAttrs(axis, keep, last), onnx))
        found.append(Case(op, [INTEGERS.astype(np.int32)], ArgAttrs(1), {"axis": 1}))
    for largest in (True, False):
        for axis, k in ((1, 1), (1, 4), (1, 7), (2, 3)):
            onnx = {"axis": axis, "largest": int(largest)}
            found.append(Case("TopK", [TIES], TopKAttrs(axis, k, largest), onnx, [i64(k)], outputs=2))
        found.append(
            Case("TopK", [INTEGERS], TopKAttrs(1, 3, largest), {"axis": 1, "largest": int(largest)}, [i64(3)], outputs=2)
        )
    return found
