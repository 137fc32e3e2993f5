"""Pass `fold-constants`: evaluate nodes whose operands are all constants.

%t = Transpose(%w) perm=[1, 0]       ->      %t = constant
%y = Gemm(%x, %t)                            %y = Gemm(%x, %t)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph
from bevel.ir.interp import evaluate


@dataclass(frozen=True)
class FoldConstants:
    """Evaluate constant subgraphs with the interpreter.

    Attributes:
        limit: largest result, in elements, that is worth storing.
    """

    name: ClassVar[str] = "fold-constants"
    limit: int = 1 << 26

    def run(self, graph: Graph) -> Graph:
        """The graph with constant nodes replaced by constants of their names and types."""
        result = graph.clone()
        for node in result.nodes:
            known = bool(node.inputs) and all(v.is_constant for v in node.inputs)
            known = known and all(out.type.is_static for out in node.outputs)
            if not known or any(out.type.size > self.limit or result.is_output(out) for out in node.outputs):
                continue
            for out, array in zip(node.outputs, evaluate(node, result.level), strict=True):
                constant = result.add_constant(f"{out.name}.folded", array, out.type)
                result.take_name(constant, out)
            result.remove(node)
        return result
