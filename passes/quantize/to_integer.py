"""Pass `to-integer`: an annotated graph becomes one that computes on integers alone, but for named float islands.

    %y: q8  = Conv(%x: q8, %w: q8, %b: q32)          %y.acc: i32 = IntConv(%x, %w, %y.bias)
    %r: q8' = Relu(%y)                         ->    %r: q8' = Requantize(%y.acc, %m, %n) lo=zp

Each result keeps the name of the value it stands for. Nodes without an integer form, or with operands left float, stay float
between Dequantize and Quantize. docs/numerics.md states what the integer operators compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import QuantRule, Trait, lookup
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.integer import OutAttrs
from bevel.ir.types import F32, I8, U8, Int, Quant
from bevel.passes.quantize import (
    lower_channelwise,
    lower_elementwise,
    lower_matmul,
    lower_movement,
    lower_pool,
    lower_reduce,
    lower_weighted,
)
from bevel.passes.quantize.lowering import AT_LEAST_ZERO, Lowering, is_code, quant, rule_for, whole_rule_for

# Importing them registers their rules.
RULE_FILES = (lower_channelwise, lower_elementwise, lower_matmul, lower_movement, lower_pool, lower_reduce, lower_weighted)


@dataclass(frozen=True)
class ToInteger:
    """Lower an ANNOTATED graph, calibrated or imported, to INTEGER."""

    name: ClassVar[str] = "to-integer"

    def run(self, graph: Graph) -> Graph:
        """The INTEGER graph of `graph`.

        Raises:
            UsageError: `graph` is not at ANNOTATED level.
            UnsupportedModel: a layer's accumulators could overflow, or its weights or scales have no integer form; names it.
        """
        if graph.level is not Level.ANNOTATED:
            raise UsageError(
                f"to-integer: graph {graph.name!r} is at {graph.level.value} level, expected annotated; run calibrate first"
            )
        source = graph.clone()
        signs = settle_signs(source)
        spread_types(source)
        settle_codes(source)
        ctx = Lowering(source, signs)
        fused: set[Node] = set()
        for node in source.nodes:
            if node not in fused:
                fused.update(_lower(ctx, node))
        ctx.target.set_outputs([ctx.operand(v) for v in source.outputs])
        return ctx.target


def spread_types(graph: Graph) -> None:
    """Give float results of data movement the quantized type on its other side, in place.

    Moving and quantizing commute, so a type before the movement and one behind it mean the same; codes move then, not reals.
    """
    movements = [n for n in graph.nodes if Trait.MOVEMENT in lookup(n.op).traits]
    for node in reversed(movements):
        for value in node.inputs:
            if value.type.elem == F32 and is_code(node.outputs[0]) and graph.sole_user(value) is node and not value.is_constant:
                value.type = value.type.with_elem(node.outputs[0].type.elem)
    for node in movements:
        elems = {v.type.elem for v in node.inputs if not isinstance(v.type.elem, Int)}
        moved = node.outputs[0]
        if moved.type.elem == F32 and len(elems) == 1 and is_code(node.inputs[0]):
            moved.type = moved.type.with_elem(node.inputs[0].type.elem)


def settle_signs(graph: Graph) -> set[Value]:
    """Give bipolar activations the form that kernels know, in place, and return them.

    That is two bits with zero point 1: codes are 0 and 2, and a border of zeros has one too.
    """
    typed = [v for v in graph.values() if not v.is_constant and isinstance(v.type.elem, Quant)]
    signs = {v for v in typed if quant(v).storage.bipolar}
    for value in signs:
        value.type = value.type.with_elem(Quant(Int(2, signed=False), quant(value).scale, (1,)))
    return signs


def settle_codes(graph: Graph) -> None:
    """Give activations of fewer than 8 bits the form that kernels know, in place: unsigned codes, and int8 at the inputs.

    Signed codes of b bits become unsigned ones, 2^(b-1) more, zero points alike. An input of few bits gets the int8 type of the
    same scale and zero point, whose codes are those that the model takes, and a conversion behind it.
    """
    for value in [v for v in graph.values() if not v.is_constant and is_code(v) and quant(v).storage != I8]:
        elem = quant(value)
        lift = -elem.storage.min
        few = Quant(Int(elem.storage.bits, signed=False), elem.scale, (elem.zero_point[0] + lift,))
        if value not in graph.inputs or value.name in graph.states or not value.users:
            value.type = value.type.with_elem(few)
            continue
        value.type = value.type.with_elem(replace(elem, storage=I8))
        readers = value.users
        first = next(node for node in graph.nodes if node in readers)
        name, type_ = graph.unique_name(f"{value.name}.codes"), value.type.with_elem(few)
        narrow = graph.add_node("Clip", [value], ClipAttrs(), names=[name], loc=value.name, before=first, types=[type_])
        for node in readers:
            for index, operand in enumerate(node.inputs):
                if operand is value:
                    graph.set_input(node, index, narrow.output)


def _lower(ctx: Lowering, node: Node) -> tuple[Node, ...]:
    """Lower one node; returns the activations fused into it."""
    if node.outputs[0] in ctx.signs and not _gives_signs(ctx, node):
        _sign(ctx, node)
        return ()
    if _is_conversion(node) and _moves_sign(node.inputs[0], node.output):
        ctx.finish(node.output, "Recode", [ctx.operand(node.inputs[0])], OutAttrs(quant(node.output)), node.loc)
        return ()
    if (whole := whole_rule_for(node)) is not None:
        whole(ctx, node)
        return ()
    rule, end = rule_for(node), ctx.epilogue(node)
    if rule is None or end is None:
        _island(ctx, node)
        return ()
    if end.value is node.output and _is_conversion(node) and node.inputs[0].type == end.value.type and not _leaves(ctx, node):
        ctx.bind(end.value, ctx.operand(node.inputs[0]))
        return ()
    rule(ctx, node, end)
    return end.fused


def _gives_signs(ctx: Lowering, node: Node) -> bool:
    """True where the rule of `node` makes signs of sums, or moves signs or chooses among them."""
    row = lookup(node.op)
    chooses = row.quant is QuantRule.SAME and node.inputs[0].type.elem == node.output.type.elem and node.inputs[0] in ctx.signs
    return rule_for(node) is not None and (Trait.WEIGHTED in row.traits or chooses)


def _sign(ctx: Lowering, node: Node) -> None:
    """Compute `node` in float32 and take the sign of its result: nothing but zero rounds to zero at the least scale."""
    real = ctx.real(node.inputs[0])
    if not _is_conversion(node):
        reals = [ctx.real(v) for v in node.inputs]
        real = ctx.emit(node.op, reals, node.attrs, f"{node.output.name}.real", node.loc)
    least = replace(AT_LEAST_ZERO, scale=(float(np.finfo(np.float32).smallest_normal),))
    positive = ctx.emit("Quantize", [real], OutAttrs(least), f"{node.output.name}.positive", node.loc)
    ctx.finish_sign(node.output, positive, node.loc)


def _is_conversion(node: Node) -> bool:
    """True for an unbounded Clip: it computes nothing and only gives its result another type."""
    return node.op == "Clip" and (node.attrs.lo, node.attrs.hi) == (-math.inf, math.inf)


def _moves_sign(x: Value, y: Value) -> bool:
    """True where unsigned codes `x` and signed codes `y` stand for the same reals."""
    if not (isinstance(x.type.elem, Quant) and is_code(y) and x.type.elem.storage == U8):
        return False
    return quant(y) == Quant(I8, x.type.elem.scale, (x.type.elem.zero_point[0] - 128,))


def _leaves(ctx: Lowering, node: Node) -> bool:
    return any(ctx.source.is_output(v) for v in node.outputs)


def _island(ctx: Lowering, node: Node) -> None:
    """Keep `node` in float32, or untouched where it works on plain integers, with conversions at its borders."""
    if _is_conversion(node) and node.inputs[0].type.elem == F32 and isinstance(node.output.type.elem, Quant):
        ctx.finish(node.output, "Quantize", [ctx.operand(node.inputs[0])], OutAttrs(node.output.type.elem), node.loc)
        return
    operands = [ctx.real(v) for v in node.inputs]
    names = [ctx.fresh(f"{v.name}.real") if isinstance(v.type.elem, Quant) else v.name for v in node.outputs]
    island = ctx.target.add_node(node.op, operands, node.attrs, names=names, loc=node.loc)
    for value, result in zip(node.outputs, island.outputs, strict=True):
        if isinstance(value.type.elem, Quant):
            ctx.finish(value, "Quantize", [result], OutAttrs(value.type.elem), node.loc)
        else:
            ctx.bind(value, result)
