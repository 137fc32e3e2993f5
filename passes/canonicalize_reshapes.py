"""Pass `merge-reshapes`: chains of views become one, views that change nothing disappear.

%a = Reshape(%x) shape=[1, 64]               %y = Reshape(%x) shape=[1, 8, 8]
%y = Reshape(%a) shape=[1, 8, 8]     ->
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph
from bevel.passes.rewrite import bypass, replace


@dataclass(frozen=True)
class MergeReshapes:
    """Merge Reshape of Reshape; drop Reshape to the operand's own shape."""

    name: ClassVar[str] = "merge-reshapes"

    def run(self, graph: Graph) -> Graph:
        """The graph with as few Reshapes as carry its shapes; outputs are identical."""
        result = graph.clone()
        for node in result.nodes:
            if node.op != "Reshape" or bypass(result, node, node.inputs[0]):
                continue
            before = node.inputs[0].producer
            if before is not None and before.op == "Reshape" and before.output.type.elem == before.inputs[0].type.elem:
                merged = replace(result, node, "Reshape", [before.inputs[0]], node.attrs)
                bypass(result, merged, merged.inputs[0])
        result.prune_dead()
        return result
