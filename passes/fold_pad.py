"""Pass `fold-pad`: a zero border becomes the padding of the window operator behind it.

    %p = Pad(%x) before=[0,0,1,1] after=[0,0,1,1]        %y = Conv(%x, %w) pads=[1,1,1,1]
    %y = Conv(%p, %w)                                ->

Exact only: into Conv always, into AveragePool where the border counts or there was none, into MaxPool where the operand is
not negative and every window sees at least one of its elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import ClassVar

from bevel.ir.graph import Graph, Node, Value
from bevel.passes.rewrite import bypass, replace, sole_producer


@dataclass(frozen=True)
class FoldPad:
    """Fold zero padding of height and width into Conv, AveragePool and MaxPool; drop Pads that add nothing."""

    name: ClassVar[str] = "fold-pad"

    def run(self, graph: Graph) -> Graph:
        """The graph with foldable Pad nodes gone; outputs are identical."""
        result = graph.clone()
        for node in result.nodes:
            if node.op == "Pad" and not any((*node.attrs.before, *node.attrs.after)):
                bypass(result, node, node.inputs[0])
            elif node.op in ("Conv", "AveragePool", "MaxPool"):
                _fold(result, node)
        result.prune_dead()
        return result


def _fold(graph: Graph, node: Node) -> None:
    pad = sole_producer(graph, node, 0, "Pad")
    if pad is None or pad.attrs.mode != "constant" or pad.attrs.value != 0 or any((*pad.attrs.before[:2], *pad.attrs.after[:2])):
        return
    source = pad.inputs[0]
    if source.type.elem != pad.output.type.elem:
        return
    added = (*pad.attrs.before[2:], *pad.attrs.after[2:])
    attrs = with_fields(node.attrs, pads=tuple(a + b for a, b in zip(node.attrs.pads, added, strict=True)))
    if node.op == "AveragePool":
        if any(node.attrs.pads) and not node.attrs.count_include_pad:
            return
        attrs = with_fields(attrs, count_include_pad=True)
    if node.op == "MaxPool":
        dense = node.attrs.dilations == (1, 1) and all(p < node.attrs.kernel[i % 2] for i, p in enumerate(attrs.pads))
        if not dense or not _not_negative(source):
            return
    replace(graph, node, node.op, [source, *node.inputs[1:]], attrs)


def _not_negative(value: Value) -> bool:
    producer = value.producer
    return producer is not None and (producer.op == "Relu" or (producer.op == "Clip" and producer.attrs.lo >= 0))
