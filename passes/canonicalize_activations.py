"""Pass `fuse-activations`: clamps merge, and the operators that exporters write SiLU, HardSwish and GELU with become one.

%r = Relu(%x)                                        %y = Clip(%x) lo=0 hi=6
%y = Clip(%r) hi=6                           ->

%s = Sigmoid(%x)                                     %y = Silu(%x)
%y = Mul(%x, %s)                             ->

%h = Clip(%x * 1/6 + 1/2) lo=0 hi=1                  %y = HardSwish(%x)
%y = Mul(%x, %h)                             ->

%y = Mul(%x, 0.5 * (1 + Erf(%x / sqrt 2)))   ->      %y = Gelu(%x)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.passes.rewrite import bypass, is_float, replace, sole_producer, uniform


@dataclass(frozen=True)
class FuseActivations:
    """Merge clamps; recognise SiLU (Elfwing et al., 2018), HardSwish (Howard et al., 2019), GELU (Hendrycks and Gimpel, 2016)."""

    name: ClassVar[str] = "fuse-activations"

    def run(self, graph: Graph) -> Graph:
        """The graph with one node for each activation; equal up to float32 rounding."""
        result = graph.clone()
        for node in result.nodes:
            if node.op in ("Relu", "Clip"):
                _merge_clamps(result, node)
            elif node.op == "Mul":
                _fuse_product(result, node)
        result.prune_dead()
        return result


def _bounds(node: Node) -> tuple[float, float]:
    return (0.0, math.inf) if node.op == "Relu" else (node.attrs.lo, node.attrs.hi)


def _merge_clamps(graph: Graph, node: Node) -> None:
    lo, hi = _bounds(node)
    before, source = sole_producer(graph, node, 0, "Relu", "Clip"), node.inputs[0]
    if before is not None and is_float(before.output):
        least, most = _bounds(before)
        lo, hi, source = min(max(lo, least), hi), min(max(most, lo), hi), before.inputs[0]
    if (lo, hi) == (-math.inf, math.inf) and bypass(graph, node, source):
        return
    if source is node.inputs[0] and (node.op == "Relu" or (lo, hi) != (0.0, math.inf)):
        return
    if (lo, hi) == (0.0, math.inf):
        replace(graph, node, "Relu", [source])
    else:
        replace(graph, node, "Clip", [source], ClipAttrs(lo, hi))


def _fuse_product(graph: Graph, node: Node) -> None:
    if not all(is_float(v) or not v.producer for v in node.inputs):
        return
    for index in (0, 1):
        x, gate = node.inputs[index], node.inputs[1 - index]
        if gate.producer is None or not is_float(gate):
            continue
        if gate.producer.op == "Sigmoid" and gate.producer.inputs[0] is x:
            replace(graph, node, "Silu", [x])
            return
        if _is_hard_gate(gate, x):
            replace(graph, node, "HardSwish", [x])
            return
    factors = _factors(node)
    halves = [v for v in factors if uniform(v) is not None]
    rest = [v for v in factors if uniform(v) is None]
    if len(rest) == 2 and math.isclose(math.prod(uniform(v) or 0.0 for v in halves), 0.5, rel_tol=1e-6):
        for x, gate in (rest, rest[::-1]):
            if _is_normal_gate(gate, x):
                replace(graph, node, "Gelu", [x])
                return


def _factors(node: Node) -> list[Value]:
    """The factors of a product of products whose inner results are unquantized."""
    found: list[Value] = []
    for value in node.inputs:
        inner = value.producer
        if inner is not None and inner.op == "Mul" and is_float(value) and len(value.users) == 1:
            found += inner.inputs
        else:
            found.append(value)
    return found


def _affine(value: Value) -> tuple[Value, float, float]:
    """`value` as (v, a, b) with value = a * v + b, looking through Add, Mul and Div with one number."""
    scale, shift, node = 1.0, 0.0, value.producer
    while node is not None and node.op in ("Add", "Mul", "Div") and is_float(value):
        data, number = node.inputs[0], uniform(node.inputs[1])
        if number is None and node.op != "Div":
            data, number = node.inputs[1], uniform(node.inputs[0])
        if number is None or (node.op == "Div" and number == 0):
            break
        if node.op == "Add":
            shift += scale * number
        else:
            scale *= number if node.op == "Mul" else 1.0 / number
        value, node = data, data.producer
    return value, scale, shift


def _is_hard_gate(gate: Value, x: Value) -> bool:
    """True for clip(x / 6 + 1/2, 0, 1), also written clip(x + 3, 0, 6) / 6."""
    clamped, outer, offset = _affine(gate)
    node = clamped.producer
    if node is None or node.op != "Clip" or offset != 0 or not is_float(clamped):
        return False
    inner, scale, shift = _affine(node.inputs[0])
    found = (node.attrs.lo, node.attrs.hi * outer, scale * outer, shift * outer)
    return inner is x and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, (0.0, 1.0, 1 / 6, 0.5), strict=True))


def _is_normal_gate(gate: Value, x: Value) -> bool:
    """True for 1 + erf(x / sqrt 2)."""
    raised, outer, shift = _affine(gate)
    node = raised.producer
    if node is None or node.op != "Erf" or not is_float(raised) or (outer, shift) != (1.0, 1.0):
        return False
    inner, scale, offset = _affine(node.inputs[0])
    return inner is x and offset == 0 and math.isclose(scale, math.sqrt(0.5), rel_tol=1e-5)
