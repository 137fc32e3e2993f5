"""Pass `to-half`: a FLOAT graph whose values are stored in half precision and computed in single.

    input %x: f32                                    input %x: f32
    %y: f32 = Conv(%x, %w: f32, %b: f32)     ->      %x.half: f16 = Cast(%x) to=f16
    output %y                                        %y: f32 = Conv(%x.half, %w.half: f16, %b: f32)
                                                     output %y

Inputs and outputs of the model stay float32. Every other real is rounded once, when it is stored; operators compute on float32 of
what they load (docs/numerics.md, "Half precision"). Weights become float16; biases and parameters of few elements do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.logic import CastAttrs
from bevel.ir.types import F16, F32

# The largest half; what is larger would become infinity.
MOST = 65504.0
# Parameters of fewer elements stay float32: they take no room, and rounding them would shift whole channels.
FEWEST_ELEMENTS = 256


@dataclass(frozen=True)
class ToHalf:
    """Store values and weights of a FLOAT graph in half precision."""

    name: ClassVar[str] = "to-half"

    def run(self, graph: Graph) -> Graph:
        """The graph over float16 values; outputs differ by roundings.

        Raises:
            UsageError: `graph` is quantized, or a weight does not fit half precision; names it.
        """
        if graph.level is not Level.FLOAT:
            raise UsageError(f"to-half: graph {graph.name!r} is at {graph.level.value} level, expected float")
        result = graph.clone()
        first = result.nodes[0] if result.nodes else None
        halves: dict[Value, Value] = {}
        for value in result.inputs:
            if value.type.elem == F32 and value.users:
                node = result.add_node("Cast", [value], CastAttrs("f16"), names=[f"{value.name}.half"], before=first)
                halves[value] = node.output
        casts = {half.producer for half in halves.values()}
        for node in result.nodes:
            if node in casts:
                continue
            for index, value in enumerate(node.inputs):
                if value.is_constant and value not in halves and _becomes_half(node, index, value):
                    halves[value] = result.add_constant(f"{value.name}.half", value.array.astype(np.float16))
                if value in halves and (not value.is_constant or _becomes_half(node, index, value)):
                    result.set_input(node, index, halves[value])
            _retype(result, node)
        result.set_outputs([_single(result, value) for value in result.outputs])
        return result


def _becomes_half(node: Node, index: int, value: Value) -> bool:
    """Whether the constant operand `index` of `node` is stored in half precision."""
    if value.type.elem != F32:
        return False
    weights = Trait.WEIGHTED in lookup(node.op).traits
    largest = float(np.abs(value.array).max(initial=0))
    if weights and index == 1 and not largest <= MOST:
        raise UsageError(
            f"layer {node.loc or node.outputs[0].name!r}: weights reach {largest:g}, float16 ends at {MOST:g}: compile with fp32"
        )
    if weights:
        return index == 1
    moved = Trait.MOVEMENT in lookup(node.op).traits
    return moved or (value.array.size >= FEWEST_ELEMENTS and largest <= MOST)


def _retype(graph: Graph, node: Node) -> None:
    """Give the results of `node` their stored types: float16 for reals, but float32 for outputs that nothing else reads."""
    for value, rule in zip(node.outputs, lookup(node.op).infer_node(node), strict=True):
        boundary = graph.is_output(value) and not value.users
        value.type = rule.with_elem(F16) if rule.elem == F32 and not boundary else rule


def _single(graph: Graph, value: Value) -> Value:
    """The output `value` in float32, under its name."""
    if value.type.elem != F16:
        return value
    name = value.name
    cast = graph.add_node("Cast", [value], CastAttrs("f32")).output
    graph.rename(value, graph.unique_name(f"{name}.half"))
    graph.rename(cast, name)
    return cast
