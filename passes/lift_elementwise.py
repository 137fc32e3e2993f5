"""Pass `lift-elementwise`: what happens element by element behind a Reshape that drops a unit axis happens before it.

    %r = Reshape(%c: f32[n,16,1,50]) shape=[n,16,50]          %t = Relu(%c)
    %y = Relu(%r)                                       ->    %y = Reshape(%t) shape=[n,16,50]

Convolutions over sequences are convolutions over images of height 1, so such Reshapes stand behind each of them. Behind this
pass a chain of layers with its normalizations, activations and residual sums stays in four dimensions: statistics and
activations meet their layer, and Reshapes meet each other and merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.movement import ReshapeAttrs
from bevel.passes.rewrite import is_float, replace

# The axis that a squeezed image [N,C,1,L] loses.
AXIS = 2


@dataclass(frozen=True)
class LiftElementwise:
    """Move elementwise operators and batch normalization in front of Reshapes from [N,C,1,L] to [N,C,L]."""

    name: ClassVar[str] = "lift-elementwise"

    def run(self, graph: Graph) -> Graph:
        """The graph with those Reshapes as late as possible; outputs are identical."""
        result = graph.clone()
        for node in result.nodes:
            op = lookup(node.op)
            if len(node.outputs) == 1 and (Trait.ELEMENTWISE in op.traits or node.op == "BatchNormalization"):
                _lift(result, node)
        result.prune_dead()
        return result


def _image(value: Value) -> Value | None:
    """The value [N,C,1,L] that `value` [N,C,L] is a Reshape of."""
    node = value.producer
    if node is None or node.op != "Reshape" or not is_float(value):
        return None
    source = node.inputs[0]
    if source.type.rank != 4 or source.type.shape[AXIS] != 1 or not is_float(source):
        return None
    kept = (*source.type.shape[:AXIS], *source.type.shape[AXIS + 1 :])
    return source if kept == value.type.shape else None


def _lift(graph: Graph, node: Node) -> None:
    operands: list[Value] = []
    for index, value in enumerate(node.inputs):
        image = _image(value)
        if image is not None:
            operands.append(image)
        elif value.is_constant and (value.type.rank <= 1 or (node.op == "BatchNormalization" and index > 0)):
            operands.append(value)
        elif value.is_constant and value.type.rank in (2, 3) and is_float(value):
            # Axes count from the back: the new one goes in front of the last.
            shape = (*value.type.shape[:-1], 1, value.type.shape[-1])
            data = value.array.reshape([d for d in shape if isinstance(d, int)])
            operands.append(graph.add_constant(f"{value.name}.images", data, value.type.with_shape(shape)))
        else:
            return
    if not any(_image(v) is not None for v in node.inputs):
        return
    shape = node.output.type.shape
    images = (*shape[:AXIS], 1, *shape[AXIS:])
    lifted = graph.add_node(
        node.op,
        operands,
        node.attrs,
        names=[f"{node.output.name}.images"],
        loc=node.loc,
        types=[node.output.type.with_shape(images)],
        before=node,
    )
    replace(graph, node, "Reshape", [lifted.output], ReshapeAttrs(shape))
