"""Why layers of an INTEGER graph compute in float, and what they cost: the rows of the report of float islands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bevel.ir.graph import Graph, Node
from bevel.ir.ops import QuantRule, Trait, lookup
from bevel.ir.verify import float_islands

_CONVERSIONS = ("Quantize", "Dequantize")


@dataclass(frozen=True)
class IslandLayer:
    """One float operator of a graph.

    Attributes:
        layer: where it came from, or its result's name.
        op: operator.
        reason: why it is not computed on integers.
        macs: its multiply-accumulates, or scalar operations.
        bytes: what it reads and writes.
        macs_share: share (0..1) of the graph's.
        bytes_share: share (0..1) of the graph's.
    """

    layer: str
    op: str
    reason: str
    macs: int
    bytes: int
    macs_share: float
    bytes_share: float


def explain_islands(graph: Graph, kept: Collection[str] = ()) -> list[IslandLayer]:
    """The float operators of `graph` in execution order, the conversions at their borders included.

    Args:
        graph: INTEGER graph.
        kept: names of the results that were asked to stay float.
    """
    costs = {node: lookup(node.op).cost(node) for node in graph.nodes}
    macs = sum(cost.macs for cost in costs.values()) or 1
    moved = sum(cost.bytes for cost in costs.values()) or 1
    floats = {node for island in float_islands(graph) for node in island}
    return [
        IslandLayer(
            node.loc or node.outputs[0].name,
            node.op,
            _reason(node, floats, kept),
            costs[node].macs,
            costs[node].bytes,
            costs[node].macs / macs,
            costs[node].bytes / moved,
        )
        for node in graph.nodes
        if node in floats
    ]


def _reason(node: Node, floats: Collection[Node], kept: Collection[str]) -> str:
    spec = lookup(node.op)
    # A quantized result carries the source's name behind its conversion.
    names = {v.name for v in node.outputs} | {
        out.name for v in node.outputs for user in v.users if user.op == "Quantize" for out in user.outputs
    }
    follows = any(v.producer in floats and v.producer.op not in _CONVERSIONS for v in node.inputs if v.producer is not None)
    if node.op in _CONVERSIONS:
        return "converts at the border between codes and reals"
    if names & set(kept):
        return "kept in float as asked"
    if spec.integer is None:
        return f"{node.op} has no integer form"
    if Trait.WEIGHTED in spec.traits and not all(v.is_constant for v in node.inputs[1:]):
        return f"{node.op} with computed weights has no integer form"
    if spec.quant in (QuantRule.FLOAT, QuantRule.NONE):
        return f"this form of {node.op} has no integer form"
    if follows and spec.traits & {Trait.ACTIVATION, Trait.MOVEMENT}:
        return "follows a float layer"
    return "its operands are not 8-bit codes of one scale"
