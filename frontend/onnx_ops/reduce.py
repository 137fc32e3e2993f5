"""Reductions over axes, running sums, and selection along an axis: Reduce*, GlobalLpPool, CumSum, ArgMax, ArgMin, TopK."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand
from bevel.ir.ops.normalize import ReduceAttrs
from bevel.ir.ops.reduce import ScanAttrs
from bevel.ir.ops.select_axis import ArgAttrs, TopKAttrs
from bevel.ir.types import Bool, Elem, Int, Quant, elem_of_dtype

Converter = Callable[[Builder, OnnxNode], Operand | tuple[Operand, ...]]

# What a reduction of no elements gives; a maximum has -infinity, or the least integer. A mean of nothing does not exist.
_EMPTY = {
    "ReduceSum": 0.0,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceProd": 1.0,
    "ReduceLogSum": -inf,
    "ReduceLogSumExp": -inf,
    "ReduceMax": -inf,
    "ReduceMin": inf,
}
# Reducing no axis changes nothing; the other operators still square, or take a magnitude or logarithm.
_IDENTITIES = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")


def element_type(operand: Operand) -> Elem:
    """The element type of an operand."""
    if isinstance(operand, np.ndarray):
        return elem_of_dtype(operand.dtype)
    return operand.value.type.elem if isinstance(operand, Codes) else operand.type.elem


def read_axes(node: OnnxNode, rank: int) -> tuple[int, ...] | None:
    """Sorted axes counted from the front, from attribute or operand; None where a node without axes does not reduce at all."""
    axes = node.ints_or_input("axes", 1)
    noop = node.integer("noop_with_empty_axes", 0)
    if axes:
        return tuple(sorted({node.axis(a, rank) for a in axes}))
    return None if noop else tuple(range(rank))


def convert_reduce(_builder: Builder, node: OnnxNode) -> Operand:
    """Every Reduce operator; no axes mean all, or with noop_with_empty_axes none."""
    x, shape = node.operand(0), node.shape(0)
    axes, keepdims = read_axes(node, len(shape)), bool(node.integer("keepdims", 1))
    if axes is None:
        if node.op in _IDENTITIES:
            return x
        axes, keepdims = (), True
    if 0 in shape:
        return _reduce_nothing(node, x, axes, keepdims=keepdims)
    return node.emit(node.op, [x], ReduceAttrs(axes, keepdims))


def _reduce_nothing(node: OnnxNode, x: Operand, axes: tuple[int, ...], *, keepdims: bool) -> Operand:
    """The known result of a reduction whose operand has no elements."""
    shape = node.static(node.shape(0), "operand")
    kept = tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)
    value = _EMPTY.get(node.op)
    elem = element_type(x)
    limits = np.iinfo(elem.dtype) if isinstance(elem, Int) else None
    if value is None or isinstance(elem, Bool) or (not np.isfinite(value) and limits is None and 0 not in kept):
        node.refuse(f"{node.op} of no elements", "operands with at least one element, or a finite result")
    if limits is not None and not np.isfinite(value):
        value = limits.min if value < 0 else limits.max
    return np.full(kept, value, np.float32 if isinstance(elem, Quant) else elem.dtype)


def convert_arg(_builder: Builder, node: OnnxNode) -> Operand:
    """ArgMax and ArgMin."""
    axis = node.axis(node.integer("axis", 0), len(node.shape(0)))
    attrs = ArgAttrs(axis, bool(node.integer("keepdims", 1)), bool(node.integer("select_last_index", 0)))
    return node.emit(node.op, [node.operand(0)], attrs)


def convert_top_k(_builder: Builder, node: OnnxNode) -> tuple[Operand, ...]:
    """TopK with a constant k; results are in order whether that is asked for or not."""
    node.integer("sorted", 1)
    k = (node.integer("k", 0),) if node.has("k") else node.known_ints(1, "k")
    if k is None or len(k) != 1:
        node.refuse(f"k={k}", "one constant k")
    axis = node.axis(node.integer("axis", -1), len(node.shape(0)))
    extent = node.shape(0)[axis]
    if k[0] < 1 or (isinstance(extent, int) and k[0] > extent):
        node.refuse(f"k={k[0]} of an axis of {extent}", "k between 1 and the extent of the axis")
    attrs = TopKAttrs(axis, k[0], bool(node.integer("largest", 1)))
    return node.emit_all("TopK", [node.operand(0)], attrs, results=2)


def convert_scan(_builder: Builder, node: OnnxNode) -> Operand:
    """CumSum and CumProd along a constant axis."""
    axis = node.known_ints(1, "axis")
    if axis is None or len(axis) != 1:
        node.refuse(f"axis {axis}", "one constant axis")
    attrs = ScanAttrs(
        node.axis(axis[0], len(node.shape(0))), bool(node.integer("exclusive", 0)), bool(node.integer("reverse", 0))
    )
    return node.emit(node.op, [node.operand(0)], attrs)


def convert_global_lp_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """GlobalLpPool for p of 1 and 2: a sum of magnitudes, or the root of a sum of squares."""
    rank, p = len(node.shape(0)), node.integer("p", 2)
    if rank < 3 or p not in (1, 2):
        node.refuse(f"p={p} over rank {rank}", "p of 1 and 2 over [N,C,...]")
    return node.emit(f"ReduceL{p}", [node.operand(0)], ReduceAttrs(tuple(range(2, rank))))


TABLE: dict[str, Converter] = {
    **{f"Reduce{name}": convert_reduce for name in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum")},
    "ReduceLogSumExp": convert_reduce,
    "ReduceSumSquare": convert_reduce,
    "ArgMax": convert_arg,
    "ArgMin": convert_arg,
    "TopK": convert_top_k,
    "CumSum": convert_scan,
    "CumProd": convert_scan,
    "GlobalLpPool": convert_global_lp_pool,
}
