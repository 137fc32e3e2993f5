"""Pass `to-integer`: an annotated graph becomes one that computes on integers alone, but for named float islands.

    %y: q8  = Conv(%x: q8, %w: q8, %b: q32)          %y.acc: i32 = IntConv(%x, %w, %y.bias)
    %r: q8' = Relu(%y)                         ->    %r: q8' = Requantize(%y.acc, %m, %n) lo=zp

Each result keeps the name of the value it stands for. Nodes without an integer form, or with operands left float, stay float
between Dequantize and Quantize. docs/numerics.md states what the integer operators compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level, Node
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.integer import OutAttrs
from bevel.ir.types import F32, Quant
from bevel.passes.quantize import lower_elementwise, lower_movement, lower_pool, lower_weighted
from bevel.passes.quantize.lowering import Lowering, is_code, rule_of

# Importing them registers their rules.
RULE_FILES = (lower_elementwise, lower_movement, lower_pool, lower_weighted)


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
        spread_types(source)
        ctx = Lowering(source)
        fused: set[Node] = set()
        for node in source.nodes:
            if node not in fused:
                fused.update(_lower(ctx, node))
        ctx.target.set_outputs([ctx.operand(v) for v in source.outputs])
        return ctx.target


def spread_types(graph: Graph) -> None:
    """Give float results of data movement the quantized type on its other side, in place.

    Moving and quantizing commute, so a type before the movement and one behind it mean the same; codes then move instead of reals.
    """
    movements = [n for n in graph.nodes if Trait.MOVEMENT in lookup(n.op).traits]
    for node in reversed(movements):
        for value in node.inputs:
            if value.type.elem == F32 and is_code(node.output) and graph.sole_user(value) is node and not value.is_constant:
                value.type = value.type.with_elem(node.output.type.elem)
    for node in movements:
        elems = {v.type.elem for v in node.inputs}
        if node.output.type.elem == F32 and len(elems) == 1 and is_code(node.inputs[0]):
            node.output.type = node.output.type.with_elem(node.inputs[0].type.elem)


def _lower(ctx: Lowering, node: Node) -> tuple[Node, ...]:
    """Lower one node; returns the activations fused into it."""
    rule, end = rule_of(node.op), ctx.epilogue(node)
    if rule is None or end is None or not _operands_fit(node):
        _island(ctx, node)
        return ()
    rule(ctx, node, end)
    return end.fused


def _operands_fit(node: Node) -> bool:
    """True when the node's operands are codes, and weights and bias of a layer constants of any quantized type."""
    if Trait.WEIGHTED not in lookup(node.op).traits:
        return all(is_code(v) for v in node.inputs)
    weight = node.inputs[1]
    known = all(v.is_constant for v in node.inputs[1:])
    return is_code(node.inputs[0]) and known and isinstance(weight.type.elem, Quant) and weight.type.elem.storage.bits <= 8


def _island(ctx: Lowering, node: Node) -> None:
    """Keep `node` in float32, or untouched where it works on plain integers, with conversions at its borders."""
    operands = [ctx.real(v) for v in node.inputs]
    names = [ctx.fresh(f"{v.name}.real") if isinstance(v.type.elem, Quant) else v.name for v in node.outputs]
    island = ctx.target.add_node(node.op, operands, node.attrs, names=names, loc=node.loc)
    for value, result in zip(node.outputs, island.outputs, strict=True):
        if isinstance(value.type.elem, Quant):
            ctx.finish(value, "Quantize", [result], OutAttrs(value.type.elem), node.loc)
        else:
            ctx.bind(value, result)
