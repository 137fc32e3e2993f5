"""Pass `fuse-activations`: clamps merge, and what exporters write activations with becomes one operator each.

%r = Relu(%x)                                        %y = Clip(%x) lo=0 hi=6
%y = Clip(%r) hi=6                           ->

%s = Sigmoid(%x)                                     %y = Silu(%x)
%y = Mul(%x, %s)                             ->

%h = Clip(%x * 1/6 + 1/2) lo=0 hi=1                  %y = HardSwish(%x)
%y = Mul(%x, %h)                             ->

%y = Mul(%x, 0.5 * (1 + Erf(%x / sqrt 2)))   ->      %y = Gelu(%x)

Likewise Swish = x * sigmoid(a x), Mish = x * tanh(softplus(x)), GeluTanh (its cubic in any spelling), Softplus = log(1 + exp(x)),
LeakyRelu = max(x, a x) and HardSigmoid = clip(x + 3, 0, 6) / 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.functions import HardSigmoidAttrs, LeakyReluAttrs, SwishAttrs
from bevel.passes.rewrite import bypass, is_float, replace, sole_producer, uniform


@dataclass(frozen=True)
class FuseActivations:
    """Merge clamps; recognise activations.

    SiLU (Elfwing et al., 2018), HardSwish (Howard et al., 2019), GELU (Hendrycks and Gimpel, 2016), Swish (Ramachandran et al.,
    2017), Mish (Misra, 2019).
    """

    name: ClassVar[str] = "fuse-activations"

    def run(self, graph: Graph) -> Graph:
        """The graph with one node for each activation; equal up to float32 rounding."""
        result = graph.clone()
        for node in result.nodes:
            if node.op in ("Relu", "Clip"):
                _merge_clamps(result, node)
            elif node.op == "Mul":
                _ = _fuse_product(result, node) or _fuse_scaled_clamp(result, node)
            elif node.op == "Div":
                _fuse_scaled_clamp(result, node)
            elif node.op == "Log":
                _fuse_softplus(result, node)
            elif node.op == "Max":
                _fuse_leaky(result, node)
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


def _fuse_product(graph: Graph, node: Node) -> bool:
    """A product of x and a gate of x; returns whether it was one."""
    if not all(is_float(v) or not v.producer for v in node.inputs):
        return False
    for index in (0, 1):
        x, gate = node.inputs[index], node.inputs[1 - index]
        if gate.producer is None or not is_float(gate):
            continue
        alpha = _sigmoid_slope(gate, x)
        if alpha is not None:
            replace(graph, node, "Silu", [x]) if alpha == 1 else replace(graph, node, "Swish", [x], SwishAttrs(alpha))
            return True
        if _is_hard_gate(gate, x) or _is_mish_gate(gate, x):
            replace(graph, node, "Mish" if gate.producer.op == "Tanh" else "HardSwish", [x])
            return True
    factors = _factors(node)
    halves = [v for v in factors if uniform(v) is not None]
    rest = [v for v in factors if uniform(v) is None]
    if len(rest) == 2 and math.isclose(math.prod(uniform(v) or 0.0 for v in halves), 0.5, rel_tol=1e-6):
        for x, gate in (rest, rest[::-1]):
            if (op := _gelu_of_gate(gate, x)) is not None:
                replace(graph, node, op, [x])
                return True
    return False


def _fuse_scaled_clamp(graph: Graph, node: Node) -> bool:
    """HardSigmoid for c * Clip(a * x + b) with bounds that become 0 and 1; returns whether it was one."""
    clamped, outer, offset = _affine(node.output)
    clip = clamped.producer
    if clip is None or clip.op != "Clip" or clamped is node.output or not is_float(clamped) or graph.sole_user(clamped) is None:
        return False
    if offset != 0 or clip.attrs.lo != 0 or not math.isclose(clip.attrs.hi * outer, 1.0, rel_tol=1e-6):
        return False
    x, scale, shift = _affine(clip.inputs[0])
    replace(graph, node, "HardSigmoid", [x], HardSigmoidAttrs(scale * outer, shift * outer))
    return True


def _fuse_softplus(graph: Graph, node: Node) -> None:
    """log(1 + exp(x))."""
    inner, scale, shift = _affine(node.inputs[0])
    if (scale, shift) == (1.0, 1.0) and inner.producer is not None and inner.producer.op == "Exp" and is_float(inner):
        replace(graph, node, "Softplus", [inner.producer.inputs[0]])


def _fuse_leaky(graph: Graph, node: Node) -> None:
    """max(x, a * x) with a in (0, 1)."""
    for x, scaled in (node.inputs, node.inputs[::-1]):
        if scaled is not x and is_float(scaled):
            inner, scale, shift = _affine(scaled, x)
            if inner is x and shift == 0 and 0 < scale < 1:
                replace(graph, node, "LeakyRelu", [x], LeakyReluAttrs(scale))
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


def _affine(value: Value, x: Value | None = None) -> tuple[Value, float, float]:
    """`value` as (v, a, b) with value = a * v + b, looking through Add, Mul and Div with one number, but not through `x`."""
    scale, shift, node = 1.0, 0.0, value.producer
    while node is not None and value is not x and node.op in ("Add", "Mul", "Div") and is_float(value):
        data, number = node.inputs[0], uniform(node.inputs[1])
        if number is None and node.op != "Div":
            data, number = node.inputs[1], uniform(node.inputs[0])
        if number is None or (node.op == "Div" and number == 0) or data.type.shape != value.type.shape:
            break
        if node.op == "Add":
            shift += scale * number
        else:
            scale *= number if node.op == "Mul" else 1.0 / number
        value, node = data, data.producer
    return value, scale, shift


def _close(found: Sequence[float], expected: Sequence[float], tolerance: float = 1e-6) -> bool:
    return all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(found, expected, strict=True))


def _sigmoid_slope(gate: Value, x: Value) -> float | None:
    """The a of sigmoid(a * x), None for any other gate."""
    node = gate.producer
    if node is None or node.op != "Sigmoid":
        return None
    inner, scale, shift = _affine(node.inputs[0], x)
    return scale if inner is x and shift == 0 else None


def _is_mish_gate(gate: Value, x: Value) -> bool:
    """True for tanh(softplus(x))."""
    node = gate.producer
    inner = node.inputs[0].producer if node is not None and node.op == "Tanh" and is_float(node.inputs[0]) else None
    return inner is not None and inner.op == "Softplus" and inner.inputs[0] is x


def _is_hard_gate(gate: Value, x: Value) -> bool:
    """True for clip(x / 6 + 1/2, 0, 1), also written clip(x + 3, 0, 6) / 6 or HardSigmoid."""
    clamped, outer, offset = _affine(gate, x)
    node = clamped.producer
    if node is None or offset != 0 or not is_float(clamped):
        return False
    if node.op == "HardSigmoid":
        return node.inputs[0] is x and _close((outer, node.attrs.alpha, node.attrs.beta), (1.0, 1 / 6, 0.5))
    if node.op != "Clip":
        return False
    inner, scale, shift = _affine(node.inputs[0], x)
    return inner is x and _close((node.attrs.lo, node.attrs.hi * outer, scale * outer, shift * outer), (0.0, 1.0, 1 / 6, 0.5))


def _gelu_of_gate(gate: Value, x: Value) -> str | None:
    """Gelu for 1 + erf(x / sqrt 2), GeluTanh for 1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)), None for any other gate."""
    raised, outer, shift = _affine(gate, x)
    node = raised.producer
    if node is None or not is_float(raised) or (outer, shift) != (1.0, 1.0):
        return None
    if node.op == "Erf":
        inner, scale, offset = _affine(node.inputs[0], x)
        return "Gelu" if inner is x and offset == 0 and _close([scale], [math.sqrt(0.5)], 1e-5) else None
    if node.op == "Tanh":
        slope = math.sqrt(2 / math.pi)
        return "GeluTanh" if _close(_cubic(node.inputs[0], x) or (0.0,) * 4, (0.0, slope, 0.0, 0.044715 * slope), 1e-5) else None
    return None


def _cubic(value: Value, x: Value, depth: int = 8) -> tuple[float, float, float, float] | None:
    """Coefficients of `value` as a polynomial of `x` of degree 3 at most, from the constant one on; None where it is none.

    Spellings of more than `depth` operators in a row are none, so that the search stays short on any graph.
    """
    if value is x:
        return 0.0, 1.0, 0.0, 0.0
    if (number := uniform(value)) is not None:
        return number, 0.0, 0.0, 0.0
    node = value.producer
    if node is None or depth == 0 or not is_float(value) or node.op not in ("Add", "Mul", "Div", "Power"):
        return None
    terms = [_cubic(v, x, depth - 1) for v in node.inputs]
    a, b = terms[0], terms[-1]
    if a is None or b is None:
        return None
    if node.op == "Add":
        return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]
    if node.op == "Div":
        return (a[0] / b[0], a[1] / b[0], a[2] / b[0], a[3] / b[0]) if b[0] != 0 and not any(b[1:]) else None
    if node.op == "Power":
        return (0.0, 0.0, 0.0, 1.0) if node.attrs.exponent == 3 and a == (0.0, 1.0, 0.0, 0.0) else None
    product = [0.0] * 7
    for i, left in enumerate(a):
        for k, right in enumerate(b):
            product[i + k] += left * right
    return None if any(product[4:]) else (product[0], product[1], product[2], product[3])
