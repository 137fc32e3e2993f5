"""Data movement on codes: the same operator, with a table wherever the annotated type changes on the way."""

from __future__ import annotations

from bevel.ir.graph import Node
from bevel.ir.ops.integer import OutAttrs
from bevel.passes.quantize.lowering import Epilogue, Lowering, lowers, quant


@lowers("Concat", "Pad")
def lower_join(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Concat and Pad make elements of several sources one tensor, so every operand takes the result's type first."""
    operands = [
        ctx.convert(ctx.operand(v), quant(v), end.out, f"{end.value.name}.operand{i}", node.loc)
        for i, v in enumerate(node.inputs)
    ]
    ctx.finish(end.value, node.op, operands, node.attrs, node.loc)


@lowers("Reshape", "Transpose", "Slice", "MaxPool")
def lower_movement(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """The operator moves codes; a table behind it changes the type (tables are monotone, so MaxPool commutes with them)."""
    source = node.inputs[0]
    if quant(source) == end.out:
        ctx.finish(end.value, node.op, [ctx.operand(source)], node.attrs, node.loc)
        return
    moved = ctx.emit(node.op, [ctx.operand(source)], node.attrs, f"{end.value.name}.moved", node.loc)
    ctx.finish(end.value, "Lut", [moved, ctx.table(lambda r: r, quant(source), end)], OutAttrs(end.out), node.loc)
