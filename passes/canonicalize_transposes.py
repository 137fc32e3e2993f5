"""Pass `merge-transposes`: permutations move behind elementwise operators, where they meet and cancel.

    %a = Transpose(%x) perm=[0, 3, 1, 2]             %r = Relu(%x)
    %r = Relu(%a)                            ->
    %y = Transpose(%r) perm=[0, 2, 3, 1]

A permutation that moves only axes of extent 1 is a Reshape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph, Node
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.movement import ReshapeAttrs, TransposeAttrs
from bevel.passes.rewrite import bypass, replace, sole_producer


@dataclass(frozen=True)
class MergeTransposes:
    """Sink, compose and cancel Transposes."""

    name: ClassVar[str] = "merge-transposes"

    def run(self, graph: Graph) -> Graph:
        """The graph with as few Transposes as it needs; outputs are identical."""
        result = graph.clone()
        for node in result.nodes:
            if node.op == "Transpose":
                _merge(result, node)
            elif Trait.ELEMENTWISE in lookup(node.op).traits:
                _sink(result, node)
        # Last: a view would hide a permutation from the next one.
        for node in result.nodes:
            if node.op == "Transpose":
                _simplify(result, node)
        result.prune_dead()
        return result


def _merge(graph: Graph, node: Node) -> None:
    """Compose `node` with a Transpose before it."""
    before = node.inputs[0].producer
    if before is not None and before.op == "Transpose" and before.output.type.elem == before.inputs[0].type.elem:
        perm = tuple(before.attrs.perm[a] for a in node.attrs.perm)
        replace(graph, node, "Transpose", [before.inputs[0]], TransposeAttrs(perm))


def _simplify(graph: Graph, node: Node) -> None:
    """Drop a Transpose that moves nothing, make it a view if it moves only axes of extent 1."""
    shape = node.inputs[0].type.shape
    moved = [a for a in node.attrs.perm if shape[a] != 1]
    if list(node.attrs.perm) == sorted(node.attrs.perm) and bypass(graph, node, node.inputs[0]):
        return
    if moved == sorted(moved):
        replace(graph, node, "Reshape", node.inputs, ReshapeAttrs(node.output.type.shape))


def _sink(graph: Graph, node: Node) -> None:
    """f(Transpose(x), ...) becomes Transpose(f(x, ...)) when all operands are permuted alike and not read elsewhere."""
    moves = [sole_producer(graph, node, i, "Transpose") for i in range(len(node.inputs))]
    first = moves[0]
    if first is None or node.output.type.rank != len(first.attrs.perm):
        return
    if any(m is None or m.attrs != first.attrs or m.output.type.elem != m.inputs[0].type.elem for m in moves):
        return
    sources = [m.inputs[0] for m in moves if m is not None]
    result, perm = node.output, first.attrs.perm
    shape = tuple(result.type.shape[perm.index(a)] for a in range(len(perm)))
    inner = graph.add_node(
        node.op,
        sources,
        node.attrs,
        names=[f"{result.name}.untransposed"],
        loc=node.loc,
        types=[result.type.with_shape(shape)],
        before=node,
    )
    replace(graph, node, "Transpose", [inner.output], first.attrs)
