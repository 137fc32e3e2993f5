"""Add, Sub, Mul, Min, Max, unary functions and softmax to their integer forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UnsupportedModel
from bevel.ir.graph import Node, Value
from bevel.ir.ops import Call, Trait, lookup, table
from bevel.ir.ops.integer import SOFTMAX_MAX_EXTENT, SOFTMAX_OUT, IntAddAttrs, IntMulAttrs, OutAttrs, softmax_table
from bevel.ir.types import I8
from bevel.passes.quantize.dyadic import add_factors, dyadic, exact
from bevel.passes.quantize.lowering import Epilogue, Lowering, is_code, lowers, quant

Array = npt.NDArray[Any]

UNARY_OPS = tuple(op.name for op in table() if Trait.UNARY in op.traits and op.integer not in (None, op.name))


@lowers("Add", "Sub")
def lower_sum(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Add(a, b) -> IntAdd with one shared shift; Sub negates the second multiplier.

    Raises:
        UnsupportedModel: an operand's scale is 2^21 or more times the result's.
    """
    a, b = node.inputs
    out = exact(end.out.scale[0])
    sign = -1 if node.op == "Sub" else 1
    ratios = exact(quant(a).scale[0]) / out, sign * exact(quant(b).scale[0]) / out
    factors = add_factors(*ratios)
    if factors is None:
        raise UnsupportedModel(
            f"layer {end.value.name!r}: {node.op} of operand scales {quant(a).scale[0]:g} and {quant(b).scale[0]:g} into scale "
            f"{end.out.scale[0]:g} does not fit int32; keep this layer at fp32 in the plan, or widen its output range"
        )
    attrs = IntAddAttrs(end.out, *factors, end.lo, end.hi)
    ctx.finish(end.value, "IntAdd", [ctx.operand(a), ctx.operand(b)], attrs, node.loc)


@lowers("Mul")
def lower_product(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Mul(a, b) -> IntMul with m * 2^-n ~ s_a * s_b / s_out."""
    a, b = node.inputs
    m, n = dyadic(exact(quant(a).scale[0]) * exact(quant(b).scale[0]) / exact(end.out.scale[0]))
    ctx.finish(end.value, "IntMul", [ctx.operand(a), ctx.operand(b)], IntMulAttrs(end.out, m, n, end.lo, end.hi), node.loc)


@lowers("Min", "Max")
def lower_extremum(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Min(a, b) -> Min over codes of the result's type; operands of another type go through a Lut first.

    Rounding and clamping are monotone, so this is what quantizing the real extremum gives.
    """
    operands = [_as_result(ctx, value, end, node.loc) for value in node.inputs]
    ctx.finish(end.value, node.op, operands, node.attrs, node.loc)


def _as_result(ctx: Lowering, value: Value, end: Epilogue, loc: str) -> Value:
    """Codes of `value` in the result's type, within the epilogue's clamp."""
    source, hint = quant(value), f"{end.value.name}.{value.name}"
    if value.is_constant:
        codes = np.clip(end.out.quantize(source.dequantize(value.array)), end.lo, end.hi).astype(end.out.dtype)
        return ctx.constant(hint, codes, value.type.with_elem(end.out))
    if source == end.out and (end.lo, end.hi) == (end.out.storage.min, end.out.storage.max):
        return ctx.operand(value)
    return ctx.emit("Lut", [ctx.operand(value), ctx.table(lambda r: r, source, end)], OutAttrs(end.out), hint, loc)


@lowers(*UNARY_OPS)
def lower_unary(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """A function of one operand -> Lut over all codes, its reference evaluated in float64."""
    source = node.inputs[0]
    call = Call(node.attrs, (source.type,), (end.value.type,))

    def function(x: Array) -> Array:
        return np.asarray(lookup(node.op).reference(call, x))

    codes = ctx.table(function, quant(source), end)
    ctx.finish(end.value, "Lut", [ctx.operand(source), codes], OutAttrs(end.out), node.loc)


def _softmax_fits(node: Node) -> bool:
    x = node.inputs[0]
    extent = x.type.shape[node.attrs.axis]
    return is_code(x) and quant(x).storage == I8 and isinstance(extent, int) and extent <= SOFTMAX_MAX_EXTENT


@lowers("Softmax", fits=_softmax_fits)
def lower_softmax(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Softmax -> IntSoftmax at its fixed type, and a Lut to another annotated type or clamp."""
    source = node.inputs[0]
    operands = [ctx.operand(source), ctx.constant(f"{end.value.name}.exp", softmax_table(quant(source).scale[0]))]
    full = (end.out.storage.min, end.out.storage.max)
    if end.out == SOFTMAX_OUT and (end.lo, end.hi) == full:
        ctx.finish(end.value, "IntSoftmax", operands, node.attrs, node.loc)
        return
    codes = ctx.emit("IntSoftmax", operands, node.attrs, f"{end.value.name}.softmax", node.loc)
    ctx.finish(end.value, "Lut", [codes, ctx.table(lambda r: r, SOFTMAX_OUT, end)], OutAttrs(end.out), node.loc)
