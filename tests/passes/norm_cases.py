"""Normalizations as exporters decompose them, and near misses, for pass `fuse-norms`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.functions import PowerAttrs
from bevel.ir.ops.movement import ReshapeAttrs
from bevel.ir.ops.normalize import GroupNormAttrs, ReduceAttrs
from bevel.ir.types import I8, Dim, Quant
from tests.passes.graph_cases import N, Sketch

SEQ = Dim("seq")


def centered(s: Sketch, x: Value, axes: tuple[int, ...]) -> Value:
    return s.op("d", "Sub", x, s.op("m", "ReduceMean", x, attrs=ReduceAttrs(axes)))


def root(s: Sketch, d: Value, axes: tuple[int, ...], epsilon: float = 1e-5) -> Value:
    variance = s.op("v", "ReduceMean", s.op("q", "Mul", d, d), attrs=ReduceAttrs(axes))
    return s.op("r", "Sqrt", s.op("e", "Add", variance, s.number("eps", epsilon)))


def affine(s: Sketch, n: Value, *shape: int) -> Value:
    return s.op("y", "Add", s.op("g", "Mul", n, s.const("scale", *shape)), s.const("bias", *shape))


def layer_norm_of_torch() -> Graph:
    s = Sketch()
    d = centered(s, s.input(N, SEQ, 6), (2,))
    return s.done(affine(s, s.op("n", "Div", d, root(s, d, (2,))), 6))


def layer_norm_with_two_differences() -> Graph:
    """The difference is computed twice, the quotient is a product with the reciprocal, the scale stands first."""
    s = Sketch()
    x = s.input(N, 3, 6)
    d = centered(s, x, (2,))
    twin = s.op("twin", "Sub", x, s.op("again", "ReduceMean", x, attrs=ReduceAttrs((2,))))
    n = s.op("n", "Mul", d, s.op("i", "Reciprocal", root(s, twin, (2,))))
    return s.done(s.op("y", "Mul", s.const("scale", 1, 1, 6), n))


def layer_norm_by_a_power() -> Graph:
    s = Sketch()
    d = centered(s, s.input(4, 6), (1,))
    variance = s.op("v", "ReduceMean", s.op("q", "Mul", d, d), attrs=ReduceAttrs((1,)))
    raised = s.op("e", "Add", s.number("eps", 1e-3), variance)
    return s.done(s.op("y", "Mul", s.op("i", "Power", raised, attrs=PowerAttrs(-0.5)), d))


def layer_norm_over_channels() -> Graph:
    """Channels first, as ConvNeXt has it."""
    s = Sketch()
    d = centered(s, s.input(N, 6, 4, 5), (1,))
    return s.done(affine(s, s.op("n", "Div", d, root(s, d, (1,))), 6, 1, 1))


def rms_norm() -> Graph:
    s = Sketch()
    x = s.input(N, SEQ, 6)
    inverse = s.op("i", "Div", s.number("one", 1.0), root(s, x, (2,), 1e-6))
    return s.done(s.op("y", "Mul", s.const("scale", 6), s.op("n", "Mul", x, inverse)))


def instance_norm() -> Graph:
    s = Sketch()
    d = centered(s, s.input(N, 6, 4, 5), (2, 3))
    return s.done(affine(s, s.op("n", "Div", d, root(s, d, (2, 3))), 6, 1, 1))


def group_norm_of_torch() -> Graph:
    s = Sketch()
    x = s.input(N, 6, 4, 5)
    rows = s.op("rows", "Reshape", x, attrs=ReshapeAttrs((N, 2, 60)))
    ones = s.graph.add_constant("ones", np.ones(2, np.float32))
    zeros = s.graph.add_constant("zeros", np.zeros(2, np.float32))
    n = s.op("n", "GroupNormalization", rows, ones, zeros, attrs=GroupNormAttrs(2))
    return s.done(affine(s, s.op("back", "Reshape", n, attrs=ReshapeAttrs((N, 6, 4, 5))), 6, 1, 1))


def group_norm_with_group_parameters() -> Graph:
    s = Sketch()
    rows = s.op("rows", "Reshape", s.input(N, 6, 4), attrs=ReshapeAttrs((N, 3, 8)))
    n = s.op("n", "GroupNormalization", rows, s.const("scale", 3), s.const("bias", 3), attrs=GroupNormAttrs(3))
    return s.done(s.op("y", "Reshape", n, attrs=ReshapeAttrs((N, 6, 4))))


def rms_norm_of_a_difference() -> Graph:
    """The mean taken off is one over another axis, so this is no layer normalization."""
    s = Sketch()
    d = centered(s, s.input(3, 6), (0,))
    return s.done(s.op("y", "Div", d, root(s, d, (1,))))


def quantized_square() -> Graph:
    """The square rounds to codes, which one operator would not: stays."""
    s = Sketch(Level.ANNOTATED)
    x = s.input(3, 6)
    square = s.op("q", "Mul", x, x, elem=Quant(I8, (0.05,)))
    mean = s.op("v", "ReduceMean", square, attrs=ReduceAttrs((1,)))
    return s.done(s.op("y", "Div", x, s.op("r", "Sqrt", s.op("e", "Add", mean, s.number("eps", 1e-5)))))


def products_instead_of_squares() -> Graph:
    """A mean of products of different values: stays."""
    s = Sketch()
    x = s.input(3, 6)
    mean = s.op("v", "ReduceMean", s.op("q", "Mul", x, s.op("a", "Relu", x)), attrs=ReduceAttrs((1,)))
    return s.done(s.op("y", "Div", x, s.op("r", "Sqrt", s.op("e", "Add", mean, s.number("eps", 1e-5)))))


def norm_of_columns() -> Graph:
    """Statistics over the first of two axes, no row of memory: stays."""
    s = Sketch()
    d = centered(s, s.input(3, 6), (0,))
    return s.done(s.op("y", "Div", d, root(s, d, (0,))))


def bias_of_another_axis() -> Graph:
    """The core fuses, the bias stays."""
    s = Sketch()
    d = centered(s, s.input(3, 6), (1,))
    return s.done(s.op("y", "Add", s.op("n", "Div", d, root(s, d, (1,))), s.const("bias", 3, 1)))


REWRITES: dict[str, tuple[Callable[[], Graph], ...]] = {
    "fuse-norms": (
        layer_norm_of_torch,
        layer_norm_with_two_differences,
        layer_norm_by_a_power,
        layer_norm_over_channels,
        rms_norm,
        rms_norm_of_a_difference,
        instance_norm,
        group_norm_of_torch,
        group_norm_with_group_parameters,
        bias_of_another_axis,
    )
}
LEFT_ALONE: dict[str, tuple[Callable[[], Graph], ...]] = {
    "fuse-norms": (quantized_square, products_instead_of_squares, norm_of_columns)
}
