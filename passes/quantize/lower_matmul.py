"""MatMul of two activations to IntMatMul: one dyadic factor s_a * s_b / s_out for the whole result."""

from __future__ import annotations

from bevel.ir.graph import Node
from bevel.ir.ops.integer import IntMulAttrs
from bevel.ir.ops.matmul import reduction_fits
from bevel.passes.quantize.dyadic import dyadic, exact
from bevel.passes.quantize.lowering import Epilogue, Lowering, lowers, operands_are_codes, quant


def _fits(node: Node) -> bool:
    return operands_are_codes(node) and reduction_fits(node.inputs[0].type)


@lowers("MatMul", fits=_fits)
def lower_matmul(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """MatMul(a, b) -> IntMatMul with m * 2^-n ~ s_a * s_b / s_out; clamps behind it become its bounds."""
    a, b = node.inputs
    m, n = dyadic(exact(quant(a).scale[0]) * exact(quant(b).scale[0]) / exact(end.out.scale[0]))
    ctx.finish(end.value, "IntMatMul", [ctx.operand(a), ctx.operand(b)], IntMulAttrs(end.out, m, n, end.lo, end.hi), node.loc)
