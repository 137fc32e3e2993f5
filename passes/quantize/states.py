"""What calibration does for states: an input that takes an output's codes after each run has that output's quantized type.

Both ends, and the value whose type the output's follows (moving data keeps the type), get the union of their ranges, so that they
come out alike and no conversion is needed between runs. Types that are not chosen from a range (softmax's, the next state in a
chain) are handed to the input and the graph is typed again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from bevel.errors import UnsupportedModel
from bevel.ir.graph import Graph, Value
from bevel.ir.ops import QuantRule, lookup
from bevel.ir.types import F32, Quant


def state_ends(graph: Graph) -> list[tuple[Value, Value]]:
    """(input, output) of each state of reals."""
    pairs = [(graph.value(name), graph.value(output)) for name, output in graph.states.items()]
    return [(state, after) for state, after in pairs if state.type.elem == F32]


def complete(graph: Graph, typed: list[Value]) -> list[Value]:
    """`typed` and the other end of each state of which one end is typed."""
    missing = {a: None for pair in state_ends(graph) for a, b in (pair, pair[::-1]) if b in typed and a not in typed}
    return [*typed, *missing]


def type_source(value: Value, observed: Collection[Value]) -> Value:
    """The value whose type that of `value` copies, up to the first with a range of its own, which `observed` holds."""
    while value not in observed:
        node = value.producer
        if node is None or lookup(node.op).quant is not QuantRule.SAME or node.inputs[0].is_constant:
            break
        value = node.inputs[0]
    return value


def join_ranges(pairs: list[tuple[Value, Value]], ranges: dict[Value, tuple[float, float]]) -> None:
    """Give both values of each pair the union of their ranges, where they have one, in place."""
    # A value may be in several pairs: what it gets from the last reaches the first in another round.
    for _ in pairs:
        for pair in pairs:
            known = [ranges[v] for v in pair if v in ranges]
            for value in pair:
                if value in ranges:
                    ranges[value] = (min(lo for lo, _ in known), max(hi for _, hi in known))


def settle(graph: Graph, assign: Callable[[Mapping[Value, Quant]], None]) -> None:
    """Type the graph until states have the types of the outputs they take.

    Args:
        graph: gets its types from `assign`.
        assign: types all values anew, those it is given as given.

    Raises:
        UnsupportedModel: a state and its output have no common type.
    """
    known: dict[Value, Quant] = {}
    pairs = state_ends(graph)
    # Each round settles at least one state of a chain; the last two see that nothing moves any more.
    for _ in range(len(pairs) + 2):
        assign(known)
        unlike = {s: a.type.elem for s, a in pairs if a.type.elem != s.type.elem and isinstance(a.type.elem, Quant)}
        if not unlike:
            return
        known |= unlike
    state, after = next((s, a) for s, a in pairs if s.type.elem != a.type.elem)
    raise UnsupportedModel(
        f"state {state.name!r} = {after.name!r}: {state.type} and {after.type} have no common quantized type; keep the layers "
        "that compute it in float (--keep-float) or compile with --bits fp32"
    )
