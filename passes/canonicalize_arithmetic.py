"""Pass `simplify-arithmetic`: division by and subtraction of constants become products and sums; neutral operands disappear.

%y = Div(%x, %c)      ->      %y = Mul(%x, %c.inverse)
%y = Sub(%x, %c)      ->      %y = Add(%x, %c.negated)
%y = Add(%x, 0)       ->      %x
%y = Mul(%x, 1)       ->      %x
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bevel.ir.graph import Graph, Node
from bevel.passes.rewrite import bypass, float_data, replace, uniform

NEUTRAL = {"Add": 0.0, "Mul": 1.0}


@dataclass(frozen=True)
class SimplifyArithmetic:
    """Write constant arithmetic as Add and Mul, which have integer forms and fold into layers."""

    name: ClassVar[str] = "simplify-arithmetic"

    def run(self, graph: Graph) -> Graph:
        """The graph without Div and Sub by float constants; equal up to float32 rounding of 1 / c."""
        result = graph.clone()
        for node in result.nodes:
            if node.op in ("Div", "Sub"):
                _invert(result, node)
            elif node.op in NEUTRAL:
                for index in (0, 1):
                    if uniform(node.inputs[index]) == NEUTRAL[node.op] and bypass(result, node, node.inputs[1 - index]):
                        break
        result.prune_dead()
        return result


def _invert(graph: Graph, node: Node) -> None:
    constant = node.inputs[1]
    data = float_data(constant)
    if data is None or (node.op == "Div" and not np.abs(data).min(initial=np.inf) > np.finfo(np.float32).tiny):
        return
    op, suffix = ("Mul", "inverse") if node.op == "Div" else ("Add", "negated")
    opposite = (1.0 / data.astype(np.float64)).astype(np.float32) if node.op == "Div" else -data
    if np.isfinite(opposite).all():
        replace(graph, node, op, [node.inputs[0], graph.add_constant(f"{constant.name}.{suffix}", opposite)])
