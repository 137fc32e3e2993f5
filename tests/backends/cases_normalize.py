"""Reductions, normalization and selection along an axis: ragged extents, both layouts, ties and extreme values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bevel.ir.ops.normalize import AxisAttrs, GroupNormAttrs, LayerNormAttrs, LrnAttrs, ReduceAttrs, RmsNormAttrs
from bevel.ir.ops.reduce import IntReduceAttrs, ScanAttrs
from bevel.ir.ops.select_axis import ArgAttrs, TopKAttrs
from tests.backends.generic_cases import NHWC, RNG, Case, Operand, codes, plain, quant, real

# (axes, keepdims) that leave every kind of row: along, across, strided, all, none.
AXES = (((2, 3), True), ((1,), False), ((1,), True), ((3,), False), ((0, 1, 2, 3), False), ((0, 2), True), ((), True))
LAYOUTS = (((2, 19, 5, 7), None, None), ((2, 19, 5, 7), NHWC, NHWC), ((1, 70, 3, 4), NHWC, None))


def cases() -> Iterator[Case]:
    yield from _reductions()
    yield from _integers()
    yield from _scans()
    yield from _norms()
    yield from _selections()


def _reductions() -> Iterator[Case]:
    for op in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"):
        # Products stay near 1 and sums away from 0, near which no sum is precise; logarithms want positive sums.
        low, high = {"Prod": (0.9, 1.1), "LogSum": (0.1, 3.0), "Sum": (-1.0, 3.0), "Mean": (-1.0, 3.0)}.get(op, (-3.0, 3.0))
        for index, (axes, keepdims) in enumerate(AXES):
            shape, layout, out = LAYOUTS[index % len(LAYOUTS)]
            kept = out if keepdims else None
            yield Case(f"Reduce{op}", ReduceAttrs(axes, keepdims), (real(*shape, layout=layout, low=low, high=high),), kept)
    # A mean far from the deviations, over more terms than plain float32 sums bear.
    for layout in (None, NHWC):
        yield Case("ReduceMean", ReduceAttrs((2, 3)), (real(1, 5, 160, 160, layout=layout, low=99, high=101),), layout)
    yield Case("ReduceSum", ReduceAttrs((0,), keepdims=False), (real(60_000, low=0.0, high=1.0),))
    yield Case("ReduceLogSumExp", ReduceAttrs((1,)), (plain(np.array([[1e4, 1e4, -1e4], [-500, -501, -1e30]], np.float32)),))
    line = np.geomspace(1.2e-38, 3e38, 3000).astype(np.float32).reshape(-1, 1)
    yield Case("ReduceLogSum", ReduceAttrs((1,)), (plain(line),))


def _integers() -> Iterator[Case]:
    for dtype in (np.int32, np.int64, np.uint32, np.uint64):
        info = np.iinfo(dtype)
        small = plain(RNG.integers(0 if info.min == 0 else -9, 9, (3, 5, 21)).astype(dtype))
        for op in ("Sum", "Prod", "L1", "SumSquare"):
            yield Case(f"Reduce{op}", ReduceAttrs((2,), keepdims=False), (small,))
            yield Case(f"Reduce{op}", ReduceAttrs((1,)), (small,))
        wide = plain(RNG.integers(info.min, info.max, (4, 37), dtype, endpoint=True))
        for op in ("ReduceMax", "ReduceMin"):
            yield Case(op, ReduceAttrs((1,), keepdims=False), (wide,))
            yield Case(op, ReduceAttrs((0,)), (wide,))
    for op in ("ReduceMax", "ReduceMin"):
        yield Case(op, ReduceAttrs((1,)), (plain(np.array([[True, False], [False, False], [True, True]])),))
        yield Case(op, ReduceAttrs((0,)), (plain(RNG.integers(-128, 128, (7, 40)).astype(np.int8)),))
        for shape, layout, out in LAYOUTS:
            yield Case(op, ReduceAttrs((2, 3)), (codes(*shape, layout=layout),), out)
            yield Case(op, ReduceAttrs((1,), keepdims=False), (codes(*shape, layout=layout),))
    for shape, layout, out in LAYOUTS:
        for axes, keepdims in AXES[:6]:
            at = IntReduceAttrs(axes, keepdims, quant(-9), 1_500_000_001, 36, -120, 110)
            yield Case("IntReduce", at, (codes(*shape, zero_point=11, layout=layout),), out if keepdims else None)
    # Ties: half of an odd sum; and the largest sum whose int32 accumulator is exact by the bound.
    at = IntReduceAttrs((1,), False, quant(3), 1 << 30, 31, -128, 127)
    yield Case("IntReduce", at, (Operand(np.stack([np.arange(-100, 100), np.zeros(200)], 1).astype(np.int8), quant(0)),))
    full = Operand(np.full((1, 60_000), 127, np.int8), quant(-128))
    yield Case("IntReduce", IntReduceAttrs((1,), True, quant(-128), 1 << 30, 46, -128, 127), (full,))


def _scans() -> Iterator[Case]:
    for exclusive, reverse in ((False, False), (True, False), (False, True), (True, True)):
        for shape, layout, out in LAYOUTS[:2]:
            for axis in (1, 3):
                yield Case("CumSum", ScanAttrs(axis, exclusive, reverse), (real(*shape, layout=layout),), out)
        yield Case("CumProd", ScanAttrs(0, exclusive, reverse), (real(9, 5, low=0.5, high=1.5),))
        yield Case("CumSum", ScanAttrs(0, exclusive, reverse), (plain(RNG.integers(-(2**40), 2**40, (6, 33))),))
    yield Case("CumSum", ScanAttrs(1), (plain(RNG.integers(0, 99, (2, 1, 5)).astype(np.int32)),))


def _norms() -> Iterator[Case]:
    for shape, axis in (
        ((3, 384), 1),
        ((2, 5, 37), 2),
        ((2, 3, 4, 5), 1),
        ((2, 3), 1),
        ((4, 9), 0),
        ((9, 1), 1),
        ((1, 6, 130), 2),
    ):
        x = real(*shape, low=-1, high=5)
        scale, bias = real(*shape[axis:]), real(*shape[axis:])
        yield Case("LayerNormalization", LayerNormAttrs(axis), (x, scale, bias))
        yield Case("LayerNormalization", LayerNormAttrs(axis, 1e-3, statistics=True), (x, scale))
        yield Case("LayerNormalization", LayerNormAttrs(axis), (x,))
        yield Case("RMSNormalization", RmsNormAttrs(axis), (x, scale))
        yield Case("RMSNormalization", RmsNormAttrs(axis, 1e-3), (x,))
    # Deviations much smaller than the mean, and nothing but the epsilon.
    yield Case("LayerNormalization", LayerNormAttrs(1), (real(2, 20_000, low=99, high=101),))
    yield Case("LayerNormalization", LayerNormAttrs(1), (plain(np.full((2, 50), 7.25, np.float32)),))
    for shape, groups in (((2, 12, 5, 7), 3), ((1, 12, 5, 7), 12), ((2, 40, 3, 3), 2), ((2, 40, 3, 3), 40), ((1, 8, 6, 6), 1)):
        for layout in (None, NHWC):
            operands = (real(*shape, layout=layout, low=-1, high=3), real(shape[1]), real(shape[1]))
            yield Case("GroupNormalization", GroupNormAttrs(groups), operands, layout)
    yield Case("GroupNormalization", GroupNormAttrs(2, 1e-3), (real(3, 6, 33), real(6), real(6)))
    for out in (None, NHWC):
        operands = (real(2, 96, 3, 3, layout=NHWC), real(96), real(96))
        yield Case("GroupNormalization", GroupNormAttrs(32), operands, out)
    yield Case("GroupNormalization", GroupNormAttrs(3), (real(5, 6), real(6), real(6)))
    yield Case("GroupNormalization", GroupNormAttrs(4), (real(2, 4, 1, 1, layout=NHWC), real(4), real(4)), NHWC)
    yield Case("GroupNormalization", GroupNormAttrs(1), (real(2, 1, 5, 9, layout=NHWC), real(1), real(1)), None)
    for size in (1, 4, 5, 50):
        for layout in (None, NHWC):
            yield Case("LRN", LrnAttrs(size, 2e-2, 0.75, 1.5), (real(2, 37, 3, 5, layout=layout),), layout)
    yield Case("LRN", LrnAttrs(3, 1e-1, 0.6), (real(1, 3, 40),))
    for shape, axis in (((3, 37), 1), ((2, 5), 1), ((2, 33, 3, 5), 1), ((1, 1), 1), ((2, 3, 19), 0), ((1, 5000), 1)):
        yield Case("LogSoftmax", AxisAttrs(axis), (real(*shape, low=-20, high=20),))
    yield Case("LogSoftmax", AxisAttrs(1), (real(2, 33, 3, 5, layout=NHWC),), NHWC)


def _selections() -> Iterator[Case]:
    # Few different values, so that ties abound.
    for last in (False, True):
        for op in ("ArgMax", "ArgMin"):
            for shape, layout, out in LAYOUTS:
                for axis, keepdims in ((1, True), (3, False), (0, False)):
                    x = Operand(RNG.integers(-2, 3, shape).astype(np.float32), real(1).elem, layout)
                    yield Case(op, ArgAttrs(axis, keepdims, last), (x,), out if keepdims else None)
                    coded = Operand(RNG.choice([-128, 127, 3], shape).astype(np.int8), quant(5), layout)
                    yield Case(op, ArgAttrs(axis, keepdims, last), (coded,), out if keepdims else None)
            for dtype in (np.int32, np.int64, np.uint64, np.uint32):
                info = np.iinfo(dtype)
                yield Case(op, ArgAttrs(1, False, last), (plain(RNG.integers(info.min, info.max, (3, 70), dtype)),))
            yield Case(op, ArgAttrs(0, False, last), (plain(np.full(75, -np.inf, np.float32)),))
            yield Case(op, ArgAttrs(1, True, last), (real(5, 1),))
    for axis, layout in ((1, None), (1, NHWC), (3, None)):
        x = Operand(RNG.integers(-2, 3, (2, 19, 5, 7)).astype(np.float32), real(1).elem, layout)
        yield Case("Hardmax", AxisAttrs(axis), (x,), layout)
    yield Case("Hardmax", AxisAttrs(0), (real(1000),))
    for largest in (False, True):
        for k in (1, 2, 7, 19):
            x = Operand(RNG.integers(-3, 4, (2, 19, 5, 7)).astype(np.float32), real(1).elem, NHWC if k == 7 else None)
            yield Case("TopK", TopKAttrs(1, k, largest), (x,))
        zeros = np.array([[0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, -0.0, 0.0, 3e-45, -3e-45]], np.float32)
        yield Case("TopK", TopKAttrs(1, 10, largest), (plain(zeros),))
        yield Case("TopK", TopKAttrs(1, 100, largest), (real(2, 3000),))
        yield Case("TopK", TopKAttrs(0, 5, largest), (codes(77, 3, zero_point=4),))
        yield Case("TopK", TopKAttrs(1, 3, largest), (real(4, 3),))
        for dtype in (np.int8, np.uint32, np.int64, np.uint64):
            info = np.iinfo(dtype)
            yield Case("TopK", TopKAttrs(1, 9, largest), (plain(RNG.integers(info.min, info.max, (2, 50), dtype)),))
