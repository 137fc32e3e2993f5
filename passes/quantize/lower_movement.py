"""Data movement on codes: the same operator, with a table wherever the annotated type changes on the way."""

from __future__ import annotations

from bevel.ir.graph import Node
from bevel.ir.ops import Trait, table
from bevel.ir.ops.integer import OutAttrs
from bevel.ir.ops.resize import MAX_WEIGHT_BITS, IntResizeAttrs, ResizeAttrs, fits_int32
from bevel.ir.types import I8, Shape
from bevel.passes.quantize.lowering import Epilogue, Lowering, is_code, lowers, quant


@lowers("Concat", "Pad")
def lower_join(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Concat and Pad make elements of several sources one tensor, so every operand takes the result's type first."""
    operands = [
        ctx.convert(ctx.operand(v), quant(v), end.out, f"{end.value.name}.operand{i}", node.loc)
        for i, v in enumerate(node.inputs)
    ]
    ctx.finish(end.value, node.op, operands, node.attrs, node.loc)


MOVEMENTS = tuple(op.name for op in table() if Trait.MOVEMENT in op.traits and op.name not in ("Concat", "Pad"))


def _moves_codes(node: Node) -> bool:
    """True when what moves is a code; further operands are indices."""
    return is_code(node.inputs[0])


@lowers(*MOVEMENTS, fits=_moves_codes)
def lower_movement(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """The operator moves codes; a table behind it changes the type (tables are monotone, so MaxPool commutes with them)."""
    source = node.inputs[0]
    operands = [ctx.operand(v) for v in node.inputs]
    if quant(source) == end.out:
        ctx.finish(end.value, node.op, operands, node.attrs, node.loc)
        return
    moved = ctx.emit(node.op, operands, node.attrs, f"{end.value.name}.moved", node.loc)
    ctx.finish(end.value, "Lut", [moved, ctx.table(lambda r: r, quant(source), end)], OutAttrs(end.out), node.loc)


def _bits(attrs: ResizeAttrs, shape: Shape) -> int | None:
    """The most bits for each axis with which accumulators fit int32; None where there are none (very many axes)."""
    for bits in range(MAX_WEIGHT_BITS, 0, -1):
        if fits_int32(IntResizeAttrs(**vars(attrs), bits=bits), shape):
            return bits
    return None


def _resizes_codes(node: Node) -> bool:
    """Cubic interpolation overshoots: codes of the operand's type saturate where a result of another type might not."""
    x = node.inputs[0]
    if node.attrs.mode == "cubic" and node.output.type.elem != x.type.elem:
        return False
    return is_code(x) and quant(x).storage == I8 and _bits(node.attrs, x.type.shape) is not None


@lowers("Resize", fits=_resizes_codes)
def lower_resize(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Resize -> IntResize of the operand's own type, and a table behind it where the annotated type is another."""
    source = node.inputs[0]
    bits = _bits(node.attrs, source.type.shape)
    assert bits is not None
    attrs = IntResizeAttrs(**vars(node.attrs), bits=bits)
    if quant(source) == end.out and (end.lo, end.hi) == (end.out.storage.min, end.out.storage.max):
        ctx.finish(end.value, "IntResize", [ctx.operand(source)], attrs, node.loc)
        return
    resized = ctx.emit("IntResize", [ctx.operand(source)], attrs, f"{end.value.name}.resized", node.loc)
    ctx.finish(end.value, "Lut", [resized, ctx.table(lambda r: r, quant(source), end)], OutAttrs(end.out), node.loc)
