"""Random small graphs of every level, for property tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.integer import IntAddAttrs, IntAveragePoolAttrs, OutAttrs, RequantizeAttrs, softmax_table
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import AxisAttrs, ReduceAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.types import F32, Dim, Int, Quant, TensorType

Draw = st.DrawFn
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
FLOATS = st.floats(allow_nan=False, width=32)
SCALES = st.floats(2.0**-20, 2.0**10, width=32)


def codes_type(draw: Draw, bits: int = 8) -> Quant:
    """A per-tensor quantized type."""
    storage = Int(bits)
    return Quant(storage, (draw(SCALES),), (draw(st.integers(storage.min, storage.max)),))


def array(draw: Draw, shape: tuple[int, ...], lo: int, hi: int, dtype: str) -> npt.NDArray[Any]:
    """Random integers of [lo, hi] in any dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.asarray(rng.integers(lo, hi, shape, endpoint=True), dtype=dtype)


class Maker:
    """Grows one graph; every method adds a node (with its borders) behind `x`, an NCHW value."""

    def __init__(self, draw: Draw, level: Level) -> None:
        self.draw = draw
        self.graph = Graph(draw(NAMES), level, draw(st.sampled_from(["", "ab12"])))
        shape = (Dim(draw(NAMES), 1, draw(st.sampled_from([None, 4]))), 4, draw(st.integers(3, 6)), draw(st.integers(3, 6)))
        type_ = TensorType(shape, codes_type(draw) if level is Level.INTEGER else F32)
        self.x = self.graph.add_input(draw(NAMES), type_)

    def add(self, op: str, inputs: list[Value], attrs: Any = None) -> Value:
        loc = self.draw(st.one_of(st.just(""), st.text(max_size=6)))
        return self.graph.add_node(op, inputs, attrs, names=[self.draw(NAMES)], loc=loc).output

    def weight(self, shape: tuple[int, ...]) -> Value:
        return self.graph.add_constant(self.draw(NAMES), array(self.draw, shape, -9, 9, "float32") / 8)

    def grow(self, x: Value) -> Value:
        rules = [self.movement, self.slice, self.pad, self.max_pool]
        rules += [self.int_conv, self.int_other, self.island] if self.graph.level is Level.INTEGER else [self.conv, self.real]
        return self.draw(st.sampled_from(rules))(x)

    def conv(self, x: Value) -> Value:
        groups = self.draw(st.sampled_from([1, 4]))
        operands = [x, self.weight((4, 4 // groups, 2, 1))]
        if self.draw(st.booleans()):
            operands.append(self.weight((4,)))
        return self.add("Conv", operands, ConvAttrs((2, 1), pads=(1, 0, 0, 0), groups=groups))

    def real(self, x: Value) -> Value:
        op = self.draw(st.sampled_from(["Relu", "Clip", "Add", "Mul", "Sigmoid", "Softmax", "AveragePool", "ReduceMean"]))
        if op in ("Add", "Mul"):
            return self.add(op, [x, self.draw(st.sampled_from([x, self.weight((4, 1, 1))]))])
        attrs = {
            "Clip": ClipAttrs(self.draw(st.sampled_from([-np.inf, 0, -1.5])), self.draw(st.one_of(FLOATS, st.just(6)))),
            "Softmax": AxisAttrs(1),
            "AveragePool": AveragePoolAttrs((1, 1), count_include_pad=self.draw(st.booleans())),
            "ReduceMean": ReduceAttrs((), True),
        }
        return self.add(op, [x], attrs.get(op))

    def movement(self, x: Value) -> Value:
        back = (0, 1, 3, 2)
        kind = self.draw(st.sampled_from(["Transpose", "Reshape", "Concat"]))
        if kind == "Concat":
            joined = self.add("Concat", [x, x], ConcatAttrs(1))
            return self.add("Slice", [joined], SliceAttrs((0, 0, 0, 0), (-1, 8, -1, -1), (1, 2, 1, 1)))
        attrs = TransposeAttrs(back) if kind == "Transpose" else ReshapeAttrs((*x.type.shape[:2], *x.type.shape[:1:-1]))
        return self.add(kind, [x], attrs)

    def slice(self, x: Value) -> Value:
        return self.add("Slice", [x], SliceAttrs((0, 0, 0, 0), (-1, 4, 3, 3), (1, 1, 1, 1)))

    def pad(self, x: Value) -> Value:
        return self.add("Pad", [x], PadAttrs((0, 0, 1, 0), (0, 0, 0, 1), self.draw(st.sampled_from([0.0, -1.25, 1e9]))))

    def max_pool(self, x: Value) -> Value:
        return self.add("MaxPool", [x], PoolAttrs((2, 2), pads=(1, 1, 1, 0)))

    def int_conv(self, x: Value) -> Value:
        weights = array(self.draw, (4, 4, 1, 2), -127, 127, "int8")
        scale = tuple(self.draw(st.lists(SCALES, min_size=4, max_size=4)))
        w = self.graph.add_constant(self.draw(NAMES), weights, TensorType(weights.shape, Quant(Int(8), scale, axis=0)))
        b = self.graph.add_constant("bias", array(self.draw, (4,), -(2**20), 2**20, "int32"))
        m = self.graph.add_constant("m", array(self.draw, (4,), 2**30, 2**31 - 1, "int32"))
        n = self.graph.add_constant("n", array(self.draw, (4,), 1, 62, "int32"))
        acc = self.add("IntConv", [x, w, b], ConvAttrs((1, 2), pads=(0, 1, 0, 0)))
        lo = self.draw(st.integers(-128, 0))
        return self.add("Requantize", [acc, m, n], RequantizeAttrs(codes_type(self.draw), 1, lo, 127))

    def int_other(self, x: Value) -> Value:
        out, op = codes_type(self.draw), self.draw(st.sampled_from(["Lut", "IntAdd", "IntAveragePool", "IntSoftmax"]))
        if op == "Lut":
            table = self.graph.add_constant("table", array(self.draw, (256,), -128, 127, "int8"))
            return self.add(op, [x, table], OutAttrs(out))
        if op == "IntAdd":
            return self.add(op, [x, x], IntAddAttrs(out, 2**20, -(2**21), 21, -128, 127))
        if op == "IntSoftmax":
            return self.add(op, [x, self.graph.add_constant("exp", softmax_table(0.1))], AxisAttrs(1))
        return self.add(op, [x], IntAveragePoolAttrs((1, 1), out=out, counts=(1,), m=(2**30,), n=(30,)))

    def island(self, x: Value) -> Value:
        return self.add("Quantize", [self.add("Sigmoid", [self.add("Dequantize", [x])])], OutAttrs(codes_type(self.draw)))


@st.composite
def graphs(draw: Draw, levels: tuple[Level, ...] = tuple(Level), steps: int = 5) -> Graph:
    """A verified-looking graph of 1 to `steps` growth steps; ANNOTATED ones carry Quant types on some values."""
    level = draw(st.sampled_from(levels))
    maker = Maker(draw, Level.FLOAT if level is Level.ANNOTATED else level)
    x = maker.x
    for _ in range(draw(st.integers(1, steps))):
        x = maker.grow(x)
    graph = maker.graph
    graph.set_outputs(dict.fromkeys([x, draw(st.sampled_from([v for node in graph.nodes for v in node.outputs]))]))
    if level is Level.ANNOTATED:
        graph.level = level
        for value in [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]:
            if draw(st.booleans()):
                value.type = value.type.with_elem(codes_type(draw, draw(st.sampled_from([2, 4, 8, 16]))))
    return graph
