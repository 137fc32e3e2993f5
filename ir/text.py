"""The text form of a graph: readable, diffable, and parsed back exactly.

    bevel graph 1 "tiny" level=float source="" {
      input %x : f32[batch(1..8),3,8,8]
      const %w : f32[4,3,3,3] = resource
      const %b : f32[4] = [0.5, 0.0, -1.0, 2.0]
      %y = Conv(%x, %w, %b) {kernel=[3, 3], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], groups=1} : f32[...] loc "conv1"
      output %y
    }

`state %h = %hn` behind the outputs: input h of the next run is output hn of this one. Constants of many elements stand as
`resource`: their data travels beside the text, by value name. Comments start with `//`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UnsupportedModel, VerifyError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import lookup
from bevel.ir.syntax import Kind, Scanner, format_attrs, format_name, format_op, format_type
from bevel.ir.types import TensorType

Array = npt.NDArray[Any]

# Written into every text; a reader of another version refuses the file.
TEXT_VERSION = 1


def print_graph(graph: Graph, *, inline_constants: int = 32) -> str:
    """The text form of `graph`.

    Args:
        graph: any graph whose attributes hold what their fields declare.
        inline_constants: constants of at most so many elements are printed, the others stand as `resource`; 0 prints none.

    Raises:
        VerifyError: an attribute holds something that its field does not declare.
    """
    head = f"bevel graph {TEXT_VERSION} {json.dumps(graph.name)} level={graph.level.value} source={json.dumps(graph.source_hash)}"
    lines = [f"{head} {{"]
    lines += [f"  input {_typed(v)}" for v in graph.inputs]
    lines += [f"  const {_typed(v)} = {_data(v, inline_constants)}" for v in graph.constants]
    lines += [f"  {_node(node)}" for node in graph.nodes]
    lines += [f"  output {format_name(v.name)}" for v in graph.outputs]
    lines += [f"  state {format_name(name)} = {format_name(output)}" for name, output in graph.states.items()]
    return "\n".join([*lines, "}", ""])


def _typed(value: Value) -> str:
    return f"{format_name(value.name)} : {format_type(value.type)}"


def _data(value: Value, limit: int) -> str:
    array = value.array
    if array.size > limit or limit == 0:
        return "resource"
    # repr of a float is its shortest exact decimal; JSON spells truth values as the text form does.
    form = json.dumps if array.dtype.kind == "b" else repr
    return "[" + ", ".join(form(v) for v in array.reshape(-1).tolist()) + "]"


def _node(node: Node) -> str:
    results = ", ".join(format_name(v.name) for v in node.outputs)
    operands = ", ".join(format_name(v.name) for v in node.inputs)
    attrs = format_attrs(node.attrs)
    types = ", ".join(format_type(v.type) for v in node.outputs)
    loc = f" loc {json.dumps(node.loc)}" if node.loc else ""
    return f"{results} = {format_op(node.op)}({operands}){' ' + attrs if attrs else ''} : {types}{loc}"


def parse_graph(text: str, resources: Mapping[str, Array]) -> Graph:
    """The graph that `text` describes.

    The result has passed the type rules of its operators; `bevel.ir.verify.verify` checks the rest.

    Args:
        text: what `print_graph` wrote, or a person.
        resources: data of the constants that stand as `resource`, by value name.

    Raises:
        UnsupportedModel: the text is damaged, of another version, or breaks a type rule; names the line.
    """
    scanner = Scanner(text)
    graph = _header(scanner)
    while not scanner.accept("}"):
        line = scanner.line
        try:
            _statement(scanner, graph, resources)
        except (VerifyError, UnsupportedModel) as error:
            message = str(error)
            raise UnsupportedModel(message if message.startswith("line ") else f"line {line}: {message}") from None
    if scanner.peek_kind() is not Kind.END:
        scanner.fail("the end of the text")
    return graph


def _header(scanner: Scanner) -> Graph:
    scanner.expect("bevel")
    scanner.expect("graph")
    version = scanner.integer()
    if version != TEXT_VERSION:
        raise UnsupportedModel(f"text form version {version}: this bevel reads version {TEXT_VERSION}; write the graph again")
    name = scanner.take(Kind.STRING)
    scanner.expect("level")
    scanner.expect("=")
    levels = {level.value: level for level in Level}
    if not any(scanner.peek(value) for value in levels):
        scanner.fail(f"one of the levels {sorted(levels)}")
    level = levels[scanner.take(Kind.WORD)]
    scanner.expect("source")
    scanner.expect("=")
    source = scanner.take(Kind.STRING)
    scanner.expect("{")
    return Graph(name, level, source)


def _statement(scanner: Scanner, graph: Graph, resources: Mapping[str, Array]) -> None:
    if scanner.accept("input"):
        name, type_ = _declaration(scanner, graph)
        graph.add_input(name, type_)
    elif scanner.accept("const"):
        name, type_ = _declaration(scanner, graph)
        scanner.expect("=")
        data = _resource(name, resources) if scanner.accept("resource") else _inline(scanner, type_)
        graph.add_constant(name, data, type_)
    elif scanner.accept("output"):
        graph.set_outputs([*graph.outputs, _value(scanner, graph)])
    elif scanner.accept("state"):
        name = _value(scanner, graph).name
        scanner.expect("=")
        if name in graph.states:
            raise VerifyError(f"input {name!r} is a state twice")
        graph.states[name] = _value(scanner, graph).name
    elif scanner.peek_kind() is Kind.NAME:
        _operation(scanner, graph)
    else:
        scanner.fail("input, const, output, state, a result name or '}'")


def _new_name(scanner: Scanner, graph: Graph) -> str:
    name = scanner.take(Kind.NAME)
    if name in graph:
        raise VerifyError(f"value {name!r} is defined twice")
    return name


def _declaration(scanner: Scanner, graph: Graph) -> tuple[str, TensorType]:
    name = _new_name(scanner, graph)
    scanner.expect(":")
    return name, scanner.tensor_type()


def _value(scanner: Scanner, graph: Graph) -> Value:
    name = scanner.take(Kind.NAME)
    if name not in graph:
        raise VerifyError(f"value {name!r} is used before it is defined")
    return graph.value(name)


def _resource(name: str, resources: Mapping[str, Array]) -> Array:
    if name not in resources:
        raise VerifyError(f"constant {name!r} stands as resource, but no data of that name was given")
    return resources[name]


def _inline(scanner: Scanner, type_: TensorType) -> Array:
    def element() -> bool | int | float:
        if type_.dtype.kind == "b":
            if not (scanner.peek("true") or scanner.peek("false")):
                scanner.fail("true or false")
            return scanner.take(Kind.WORD) == "true"
        if type_.dtype.kind == "f":
            return scanner.number()
        value = scanner.integer()
        limits = np.iinfo(type_.dtype)
        if not limits.min <= value <= limits.max:
            raise VerifyError(f"{value} does not fit {type_.elem}")
        return value

    values = scanner.items("[", "]", element)
    if not type_.is_static or len(values) != prod(type_.static_shape):
        raise VerifyError(f"{len(values)} elements given for {type_}")
    with np.errstate(over="ignore"):
        return np.array(values, dtype=type_.dtype).reshape(type_.static_shape)


def _operation(scanner: Scanner, graph: Graph) -> None:
    names = [_new_name(scanner, graph)]
    while scanner.accept(","):
        names.append(_new_name(scanner, graph))
    if len(set(names)) != len(names):
        raise VerifyError(f"results {names} are not distinct")
    scanner.expect("=")
    op = scanner.take(Kind.STRING if scanner.peek_kind() is Kind.STRING else Kind.WORD)
    spec = lookup(op)
    operands = scanner.items("(", ")", lambda: _value(scanner, graph))
    attrs = scanner.attrs(spec.attrs)
    scanner.expect(":")
    types = [scanner.tensor_type()]
    while scanner.accept(","):
        types.append(scanner.tensor_type())
    if len(types) != len(names):
        raise VerifyError(f"{len(types)} types for {len(names)} results")
    loc = scanner.take(Kind.STRING) if scanner.accept("loc") else ""
    graph.add_node(op, operands, attrs, names=names, loc=loc, types=types)
