"""Pass `merge-slices`: a cut of a cut is one cut, and a cut that takes everything is none.

%a = Slice(%x) starts=[0,0,0,0] steps=[1,1,2,1]          %y = Slice(%x) starts=[0,0,0,0] steps=[1,1,2,2]
%y = Slice(%a) starts=[0,0,0,0] steps=[1,1,1,2]      ->
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph
from bevel.ir.ops.movement import SliceAttrs
from bevel.ir.types import Shape
from bevel.passes.rewrite import bypass, replace


@dataclass(frozen=True)
class MergeSlices:
    """Merge Slice of Slice; drop Slices of everything."""

    name: ClassVar[str] = "merge-slices"

    def run(self, graph: Graph) -> Graph:
        """The graph with merged Slices; outputs are identical."""
        result = graph.clone()
        for node in result.nodes:
            if node.op != "Slice" or bypass(result, node, node.inputs[0]):
                continue
            before = node.inputs[0].producer
            if before is not None and before.op == "Slice" and before.output.type.elem == before.inputs[0].type.elem:
                attrs = _compose(before.attrs, node.attrs, node.output.type.shape)
                replace(result, node, "Slice", [before.inputs[0]], attrs)
        result.prune_dead()
        return result


def _compose(first: SliceAttrs, second: SliceAttrs, shape: Shape) -> SliceAttrs:
    """The Slice that does `first`, then `second` with result `shape`."""
    starts, ends, steps = [], [], []
    for i, extent in enumerate(shape):
        start, step = first.starts[i] + second.starts[i] * first.steps[i], first.steps[i] * second.steps[i]
        if extent == 0:
            # Nothing is left: where it would start may lie beyond the operand.
            start, end = 0, 0
        elif (first.ends[i], second.ends[i]) == (-1, -1) or not isinstance(extent, int):
            end = -1
        else:
            end = start + (extent - 1) * step + 1
        starts.append(start)
        ends.append(end)
        steps.append(step)
    return SliceAttrs(tuple(starts), tuple(ends), tuple(steps))
