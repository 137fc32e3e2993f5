"""Steps that rewriting passes share: skip a node, put another in its place, and the conditions under which they may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.types import Float

Array = npt.NDArray[Any]


def bypass(graph: Graph, node: Node, source: Value) -> bool:
    """Let readers of `node` read `source`, which holds the same elements, and remove it.

    Returns:
        False, changing nothing, where the types differ or a graph output would lose its name.
    """
    result = node.output
    if source.type != result.type:
        return False
    if graph.is_output(result):
        if source.producer is None or graph.is_output(source):
            return False
        graph.take_name(source, result)
    else:
        graph.replace_uses(result, source)
    graph.remove(node)
    return True


def replace(graph: Graph, node: Node, op: str, inputs: Sequence[Value], attrs: Any = None, *, loc: str = "") -> Node:
    """Put one node in the place of `node`: same result name and type, and its origin unless `loc` gives another."""
    hint, type_ = f"{node.output.name}.new", node.output.type
    new = graph.add_node(op, inputs, attrs, names=[hint], loc=loc or node.loc, types=[type_], before=node)
    graph.take_name(new.output, node.output)
    graph.remove(node)
    return new


def sole_producer(graph: Graph, node: Node, index: int, *ops: str) -> Node | None:
    """The producer of operand `index` if it is one of `ops` and only `node` reads it, else None."""
    value = node.inputs[index]
    if value.producer is None or value.producer.op not in ops or graph.sole_user(value) is not node:
        return None
    return value.producer


def is_float(value: Value) -> bool:
    """True for a value that is not quantized, so that nothing rounds there and it may disappear."""
    return isinstance(value.type.elem, Float)


def float_data(value: Value) -> Array | None:
    """The elements of a float constant, None for anything else."""
    return value.data if value.is_constant and is_float(value) else None


def uniform(value: Value) -> float | None:
    """The one number a float constant holds, None for anything else."""
    data = float_data(value)
    if data is None or not data.size or not bool(np.all(data == data.reshape(-1)[0])):
        return None
    return float(data.reshape(-1)[0])
