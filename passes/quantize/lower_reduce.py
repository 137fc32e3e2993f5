"""Sums and means over axes to IntReduce; selection along an axis on codes, which compare like the reals they stand for."""

from __future__ import annotations

from math import prod

from bevel.ir.graph import Node, Value
from bevel.ir.ops.integer import OutAttrs
from bevel.ir.ops.reduce import INT_REDUCE_MAX_COUNT, IntReduceAttrs
from bevel.passes.quantize.dyadic import dyadic, exact
from bevel.passes.quantize.lowering import Epilogue, Lowering, is_code, lowers, lowers_whole, quant


def _extents(x: Value, axes: tuple[int, ...]) -> list[int] | None:
    """Lengths of the reduced axes, None where one is symbolic."""
    found = [d for d in (x.type.shape[axis] for axis in axes) if isinstance(d, int)]
    return found if len(found) == len(axes) else None


def _sums_fit(node: Node) -> bool:
    x = node.inputs[0]
    extents = _extents(x, node.attrs.axes)
    return is_code(x) and extents is not None and 1 <= prod(extents) <= INT_REDUCE_MAX_COUNT


@lowers("ReduceMean", "ReduceSum", fits=_sums_fit)
def lower_reduction(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """ReduceMean and ReduceSum -> IntReduce with m * 2^-n ~ s_x / s_out, divided by the count for a mean."""
    source, at = node.inputs[0], node.attrs
    count = prod(_extents(source, at.axes) or ()) if node.op == "ReduceMean" else 1
    m, n = dyadic(exact(quant(source).scale[0]) / exact(end.out.scale[0]) / count)
    attrs = IntReduceAttrs(at.axes, at.keepdims, end.out, m, n, end.lo, end.hi)
    ctx.finish(end.value, "IntReduce", [ctx.operand(source)], attrs, node.loc)


@lowers_whole("ArgMax", "ArgMin")
def lower_arg(ctx: Lowering, node: Node) -> None:
    """The index of the extreme code is that of the extreme real."""
    ctx.finish(node.output, node.op, [ctx.operand(node.inputs[0])], node.attrs, node.loc)


@lowers_whole("TopK")
def lower_top_k(ctx: Lowering, node: Node) -> None:
    """TopK selects codes; a table behind it changes their type where the annotated one is another."""
    source, (values, indices) = node.inputs[0], node.outputs
    retyped = quant(values) != quant(source)
    names = [ctx.fresh(f"{values.name}.selected") if retyped else values.name, indices.name]
    selected = ctx.target.add_node("TopK", [ctx.operand(source)], node.attrs, names=names, loc=node.loc).outputs
    ctx.bind(indices, selected[1])
    if not retyped:
        ctx.bind(values, selected[0])
        return
    out = quant(values)
    end = Epilogue(values, out, out.storage.min, out.storage.max)
    ctx.finish(values, "Lut", [selected[0], ctx.table(lambda r: r, quant(source), end)], OutAttrs(out), node.loc)
