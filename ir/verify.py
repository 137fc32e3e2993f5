"""The verifier: what must hold of every graph between passes.

`verify` checks, in this order: the graph's own bookkeeping (names, def-use, execution order), each value's type and each
constant's data, each node's type rule, the rules of the graph's level, and that states are typed like the outputs they take. At
INTEGER level it also proves that no accumulator can leave int32 and that every multiplier and shift is one the integer contract
allows.

A *float island* is a connected set of nodes of an INTEGER graph that touch float values, its Quantize and Dequantize borders
included. Islands are legal and always reported; `is_integer_only` is the strict form that has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import VerifyError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.groups import factored
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.integer import (
    SOFTMAX_TABLE_BITS,
    IntAddAttrs,
    IntAveragePoolAttrs,
    IntMulAttrs,
    OutAttrs,
    RequantizeAttrs,
    covered_taps,
)
from bevel.ir.ops.reduce import IntReduceAttrs
from bevel.ir.types import Codebook, Dim, Float, Int, Quant, multiplied_integers

Array = npt.NDArray[Any]

# The integer contract: multipliers are normalized to 31 bits, or zero where the real ratio is below 2^-62.
MULTIPLIER_MIN, MULTIPLIER_MAX = 1 << 30, (1 << 31) - 1
SHIFT_MIN, SHIFT_MAX = 1, 62
ACCUMULATOR_LIMIT = 1 << 31
# Kernels index elements with int32.
MAX_ELEMENTS = (1 << 31) - 1


def verify(graph: Graph) -> None:
    """Check every rule of `graph`'s level.

    Raises:
        VerifyError: the first rule that is broken, with the node's origin or the value's name.
        UnsupportedOp: an operator that is not in the op table.
    """
    _check_structure(graph)
    symbols: dict[str, Dim] = {}
    for value in graph.values():
        _check_type(value, graph.level, symbols)
        if value.is_constant:
            _check_data(value)
    for node in graph.nodes:
        _check_node(node, graph.level)
    _check_states(graph)


def is_integer_only(graph: Graph) -> bool:
    """True for an INTEGER graph without a single float value, inputs, outputs and constants included."""
    return graph.level is Level.INTEGER and not any(isinstance(v.type.elem, Float) for v in graph.values())


def float_islands(graph: Graph) -> list[tuple[Node, ...]]:
    """The float islands of an INTEGER graph: nodes connected through float values, in execution order.

    The `loc` of each node names its origin. Empty for graphs of another level, where float is the rule.
    """
    if graph.level is not Level.INTEGER:
        return []
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in graph.nodes:
        if any(isinstance(v.type.elem, Float) for v in (*node.inputs, *node.outputs)):
            parent[node] = node
            for value in node.inputs:
                if value.producer is not None and isinstance(value.type.elem, Float):
                    parent[root(value.producer)] = root(node)
    islands: dict[Node, list[Node]] = {}
    for node in parent:
        islands.setdefault(root(node), []).append(node)
    return [tuple(nodes) for nodes in islands.values()]


def accumulator_bound(node: Node) -> int:
    """The largest magnitude that any partial sum of an IntConv or IntGemm can reach, over all codes its operand can hold.

    max over output channels of sum|w| * max|x - zp| + |bias|; weights that are not constant count as their type's largest.

    Raises:
        VerifyError: the bias is not a constant.
    """
    x, w, bias = node.inputs
    reach = _reach(x)
    if w.is_constant:
        integers = multiplied_integers(w.type.elem, w.array).astype(np.int64)
        channels = np.abs(integers).reshape(w.array.shape[0], -1).sum(axis=1)
    else:
        taps = int(np.prod(w.type.static_shape[1:], dtype=np.int64))
        channels = np.full(w.type.static_shape[0], taps * _reach(w), np.int64)
    return max((int(c) * reach + abs(int(b)) for c, b in zip(channels, bias.array, strict=True)), default=0)


def _reach(value: Value) -> int:
    """The largest |code - zero point| that a quantized value can hold."""
    elem = value.type.elem
    if not isinstance(elem, Quant):
        raise VerifyError(f"value {value.name!r} is {elem}, expected a quantized type")
    return max(max(elem.storage.max - z, z - elem.storage.min) for z in elem.zero_point)


def _where(node: Node) -> str:
    origin = node.loc or (node.outputs[0].name if node.outputs else "")
    return f"{node.op} {origin!r}"


def _require(condition: bool, node: Node, message: str) -> None:
    if not condition:
        raise VerifyError(f"{_where(node)}: {message}")


# Structure -----------------------------------------------------------------------------------------------------------------


def _check_structure(graph: Graph) -> None:
    if not graph.outputs:
        raise VerifyError(f"graph {graph.name!r} has no outputs")
    for what, values in (("input", graph.inputs), ("output", graph.outputs)):
        if len(set(values)) != len(values):
            twice = next(v.name for v, n in Counter(values).items() if n > 1)
            raise VerifyError(f"graph {graph.name!r} lists {what} {twice!r} twice")
    defined: set[Value] = set()
    for value in graph.inputs:
        if value.producer is not None or value.is_constant:
            raise VerifyError(f"input {value.name!r} has a producer or data of its own")
        defined.add(value)
    for value in graph.constants:
        if value.producer is not None:
            raise VerifyError(f"{_where(value.producer)}: result {value.name!r} holds constant data")
        defined.add(value)
    uses: dict[Value, Counter[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            _require(value in defined, node, f"reads {value.name!r} before it is defined, or from another graph")
            uses.setdefault(value, Counter())[node] += 1
        _require(bool(node.outputs), node, "has no results")
        for value in node.outputs:
            _require(value not in defined, node, f"defines {value.name!r} a second time")
            _require(value.producer is node, node, f"result {value.name!r} names another producer")
            defined.add(value)
    for value in graph.outputs:
        if value not in defined:
            raise VerifyError(f"output {value.name!r} is not defined in graph {graph.name!r}")
    _check_registry(graph, defined, uses)


def _check_registry(graph: Graph, defined: set[Value], uses: dict[Value, Counter[Node]]) -> None:
    for value in graph._values.values():
        if value not in defined and not value.is_constant:
            raise VerifyError(f"graph {graph.name!r} still knows {value.name!r}, which nothing defines")
    for value in defined:
        if not value.name or not value.name.isprintable():
            raise VerifyError(f"value name {value.name!r} is empty or holds characters that cannot be printed")
        if value.name not in graph or graph.value(value.name) is not value:
            raise VerifyError(f"graph {graph.name!r} knows another value, or none, by the name {value.name!r}")
        if Counter(value._uses) != uses.get(value, Counter()):
            raise VerifyError(f"value {value.name!r}: recorded readers differ from the nodes that read it")


def _check_states(graph: Graph) -> None:
    inputs, outputs = ({v.name: v for v in values} for values in (graph.inputs, graph.outputs))
    for name, output in graph.states.items():
        if name not in inputs or output not in outputs:
            raise VerifyError(f"state {name!r} = {output!r} of graph {graph.name!r}: not an input and an output")
        if inputs[name].type != outputs[output].type:
            raise VerifyError(
                f"state {name!r} is {inputs[name].type}, but output {output!r}, which it takes, is {outputs[output].type}"
            )


# Types and data ------------------------------------------------------------------------------------------------------------


def _check_type(value: Value, level: Level, symbols: dict[str, Dim]) -> None:
    type_, elem = value.type, value.type.elem
    if type_.layout is not None:
        raise VerifyError(f"value {value.name!r} has layout {type_.layout}: graphs are row-major, backends choose layouts")
    least = prod(d.lo if isinstance(d, Dim) else d for d in type_.shape)
    if least > MAX_ELEMENTS or any(isinstance(d, int) and d < 0 for d in type_.shape):
        raise VerifyError(f"value {value.name!r} is {type_}: expected 0 to 2^31 - 1 elements")
    for dim in type_.shape:
        if isinstance(dim, Dim) and symbols.setdefault(dim.name, dim) != dim:
            raise VerifyError(f"value {value.name!r}: dimension {dim} is {symbols[dim.name]} elsewhere")
    if level is Level.FLOAT and isinstance(elem, Quant | Codebook):
        raise VerifyError(f"value {value.name!r} is {elem}: quantized types start at ANNOTATED level")
    if isinstance(elem, Quant) and elem.axis is not None:
        extent = type_.shape[elem.axis] if elem.axis < type_.rank else None
        if not isinstance(extent, int):
            raise VerifyError(f"value {value.name!r}: channel axis {elem.axis} of {type_} is missing or symbolic")
        expected = extent if elem.block is None else -(-extent // elem.block)
        if len(elem.scale) != expected:
            raise VerifyError(f"value {value.name!r}: {len(elem.scale)} scales, expected {expected} along axis {elem.axis}")
    if isinstance(elem, Codebook) and elem.axis is not None and type_.shape[elem.axis : elem.axis + 1] != (len(elem.scale),):
        raise VerifyError(f"value {value.name!r}: {len(elem.scale)} scales along axis {elem.axis} of {list(type_.shape)}")


def _weighs(node: Node, value: Value) -> bool:
    """True where `value` is a weight or parameter of `node`; masks may hold infinities, weights may not."""
    return bool(lookup(node.op).traits & {Trait.WEIGHTED, Trait.CHANNELWISE}) and value in node.inputs[1:]


def _check_data(value: Value) -> None:
    data, type_ = value.array, value.type
    if data.shape != type_.shape or data.dtype != type_.dtype:
        raise VerifyError(f"constant {value.name!r}: data is {data.dtype}{list(data.shape)}, its type says {type_}")
    if not data.size:
        return
    elem = type_.elem
    if isinstance(elem, Float) and not np.isfinite(data).all() and any(_weighs(user, value) for user in value.users):
        raise VerifyError(f"constant {value.name!r} holds NaN or infinity")
    codes = elem.storage if isinstance(elem, Quant) else elem.codes if isinstance(elem, Codebook) else elem
    if isinstance(codes, Int):
        top = len(elem.table) - 1 if isinstance(elem, Codebook) else codes.max
        _check_range(f"constant {value.name!r}", data, codes.min, top)
        if codes.bipolar and not data.all():
            raise VerifyError(f"constant {value.name!r} holds 0, expected -1 and +1 only")
    if isinstance(elem, Quant) and elem.groups is not None:
        try:
            factored(data, elem.groups)
        except ValueError as error:
            raise VerifyError(f"constant {value.name!r}: {error}") from None


def _check_range(what: str, data: Iterable[int], lo: int, hi: int) -> None:
    """Every number of `data` (an array, or Python integers of any size) lies in [lo, hi]."""
    ends = [data.min(), data.max()] if isinstance(data, np.ndarray) and data.size else data
    for value in map(int, ends):
        if not lo <= value <= hi:
            raise VerifyError(f"{what} holds {value}, expected {lo}..{hi}")


# Nodes ---------------------------------------------------------------------------------------------------------------------


def _check_node(node: Node, level: Level) -> None:
    spec = lookup(node.op)
    spec.checked_types(node, level, tuple(v.type for v in node.outputs))
    if level not in spec.levels:
        _require(level is Level.INTEGER, node, f"an operator of INTEGER level in a graph of {level.name} level")
        codes = next((v for v in node.inputs if isinstance(v.type.elem, Quant | Codebook)), None)
        _require(
            codes is None,
            node,
            f"a float operator reads {codes}: at INTEGER level float stands between Dequantize and Quantize only",
        )
    if level is Level.INTEGER and Trait.MOVEMENT in spec.traits:
        for value in (*node.inputs, *node.outputs):
            # Plain integers beside other elements are indices.
            alike = value.type.elem == node.inputs[0].type.elem or isinstance(value.type.elem, Int)
            _require(alike, node, f"moves {node.inputs[0].type.elem} and {value.type.elem}: codes of one tensor share one type")
    if isinstance(node.attrs, RequantizeAttrs | IntAddAttrs | IntMulAttrs | IntAveragePoolAttrs):
        out = node.attrs.out
        fits = out.storage.min <= node.attrs.lo <= node.attrs.hi <= out.storage.max
        _require(fits, node, f"clamp {node.attrs.lo}..{node.attrs.hi} outside {out.storage}")
    if node.op in _INTEGER_RULES:
        try:
            _INTEGER_RULES[node.op](node, node.attrs)
        except VerifyError as error:
            message = str(error)
            raise VerifyError(message if message.startswith(_where(node)) else f"{_where(node)}: {message}") from None


def _check_multipliers(m: Iterable[int], n: Iterable[int]) -> None:
    _check_range("multiplier", [v for v in m if v], MULTIPLIER_MIN, MULTIPLIER_MAX)
    _check_range("shift", n, SHIFT_MIN, SHIFT_MAX)


def _check_accumulator(node: Node, _attrs: Any) -> None:
    bound = accumulator_bound(node)
    _require(bound < ACCUMULATOR_LIMIT, node, f"accumulator can reach {bound}, expected below 2^31; split the reduction")


def _check_requantize(node: Node, _attrs: RequantizeAttrs) -> None:
    _check_multipliers(node.inputs[1].array, node.inputs[2].array)


def _check_int_add(node: Node, attrs: IntAddAttrs) -> None:
    _check_range("shift", [attrs.n], SHIFT_MIN, SHIFT_MAX)
    reach = abs(attrs.ma) * _reach(node.inputs[0]) + abs(attrs.mb) * _reach(node.inputs[1]) + (1 << (attrs.n - 1))
    _require(reach < ACCUMULATOR_LIMIT, node, f"sum can reach {reach}, expected below 2^31; use smaller multipliers")


def _check_int_mul(node: Node, attrs: IntMulAttrs) -> None:
    _check_multipliers([attrs.m], [attrs.n])
    reach = _reach(node.inputs[0]) * _reach(node.inputs[1])
    _require(reach < ACCUMULATOR_LIMIT, node, f"product can reach {reach}, expected below 2^31")


def _check_int_pool(node: Node, attrs: IntAveragePoolAttrs) -> None:
    _check_multipliers(attrs.m, attrs.n)
    reach = attrs.kernel[0] * attrs.kernel[1] * _reach(node.inputs[0])
    _require(reach < ACCUMULATOR_LIMIT, node, f"sum can reach {reach}, expected below 2^31; use a smaller window")
    _require(list(attrs.counts) == sorted(set(attrs.counts)), node, f"counts {attrs.counts} must be sorted and distinct")
    if len(attrs.counts) > 1:
        height, width = (d for d in node.inputs[0].type.shape[2:] if isinstance(d, int))
        missing = np.setdiff1d(covered_taps(attrs, height, width), attrs.counts)
        _require(not missing.size, node, f"windows over {missing.tolist()} elements have no factor")


def _check_int_reduce(node: Node, attrs: IntReduceAttrs) -> None:
    _check_multipliers([attrs.m], [attrs.n])
    fits = attrs.out.storage.min <= attrs.lo <= attrs.hi <= attrs.out.storage.max
    _require(fits, node, f"clamp {attrs.lo}..{attrs.hi} outside {attrs.out.storage}")


def _check_lut(node: Node, attrs: OutAttrs) -> None:
    _check_range(f"table {node.inputs[1].name!r}", node.inputs[1].array, attrs.out.storage.min, attrs.out.storage.max)


def _check_softmax(node: Node, _attrs: Any) -> None:
    table = node.inputs[1].array
    _check_range(f"table {node.inputs[1].name!r}", table, 0, 1 << SOFTMAX_TABLE_BITS)
    _require(int(table[0]) > 0, node, "table entry 0 (the largest exponential) is not positive")


_INTEGER_RULES: dict[str, Callable[[Node, Any], None]] = {
    "IntConv": _check_accumulator,
    "IntGemm": _check_accumulator,
    "Requantize": _check_requantize,
    "IntAdd": _check_int_add,
    "IntMul": _check_int_mul,
    "IntMatMul": _check_int_mul,
    "IntAveragePool": _check_int_pool,
    "IntReduce": _check_int_reduce,
    "Lut": _check_lut,
    "IntSoftmax": _check_softmax,
}
