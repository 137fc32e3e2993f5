"""Pass `globalize-pools`: means over whole images become GlobalAveragePool.

    %y = AveragePool(%x: f32[n,64,8,8]) kernel=[8,8]     ->      %y = GlobalAveragePool(%x)

    %y = ReduceMean(%x) axes=[2,3] keepdims=false        ->      %p = GlobalAveragePool(%x)
                                                                 %y = Reshape(%p) shape=[n,64]

A ReduceMean over axes 1 and 2 of an NHWC Transpose counts as one over height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph, Node
from bevel.ir.ops.movement import ReshapeAttrs
from bevel.passes.rewrite import replace

NHWC = (0, 2, 3, 1)


@dataclass(frozen=True)
class GlobalizePools:
    """Rewrite AveragePool and ReduceMean over full images."""

    name: ClassVar[str] = "globalize-pools"

    def run(self, graph: Graph) -> Graph:
        """The graph with GlobalAveragePool wherever that is what happens; equal up to float32 rounding."""
        result = graph.clone()
        for node in result.nodes:
            if node.op == "AveragePool":
                if node.attrs.kernel == node.inputs[0].type.shape[2:] and not any(node.attrs.pads):
                    replace(result, node, "GlobalAveragePool", node.inputs)
            elif node.op == "ReduceMean" and node.inputs[0].type.rank == 4:
                _reduce(result, node)
        result.prune_dead()
        return result


def _reduce(graph: Graph, node: Node) -> None:
    source, axes = node.inputs[0], node.attrs.axes
    before = source.producer
    if (
        before is not None
        and before.op == "Transpose"
        and before.attrs.perm == NHWC
        and before.inputs[0].type.elem == source.type.elem
    ):
        source, axes = before.inputs[0], tuple(sorted(NHWC[a] for a in axes))
    if axes != (2, 3) or not all(isinstance(d, int) and d >= 1 for d in source.type.shape[2:]):
        return
    result = node.output
    pooled = (*source.type.shape[:2], 1, 1)
    if result.type.shape == pooled:
        replace(graph, node, "GlobalAveragePool", [source])
        return
    pool = graph.add_node(
        "GlobalAveragePool",
        [source],
        names=[f"{result.name}.pooled"],
        loc=node.loc,
        types=[result.type.with_shape(pooled)],
        before=node,
    )
    replace(graph, node, "Reshape", [pool.output], ReshapeAttrs(result.type.shape))
