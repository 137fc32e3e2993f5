"""The graph: SSA values, nodes and constants, with def-use kept consistent by the graph's own methods.

Passes work on `Graph.clone()` and hand back the result; nothing else mutates. Node order is execution order.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import VerifyError
from bevel.ir.types import TensorType, elem_of_dtype

Array = npt.NDArray[Any]


class Level(enum.Enum):
    """What a graph's operators mean.

    FLOAT computes in floating point. ANNOTATED has the same operators over Quant types: every value of such a type is
    quantized and dequantized (fake quantization). INTEGER computes on codes; a float operator is a declared island.
    """

    FLOAT = "float"
    ANNOTATED = "annotated"
    INTEGER = "integer"


class Value:
    """One SSA value: a graph input, a constant or a node's result.

    Attributes:
        name: unique in the graph; for values of an imported model the ONNX value name.
        type: shape and element type.
        producer: the node that computes it, None for inputs and constants.
        data: the stored array of a constant (codes where the type is quantized), else None.
    """

    __slots__ = ("_uses", "data", "name", "producer", "type")

    def __init__(self, name: str, type_: TensorType, producer: Node | None = None, data: Array | None = None) -> None:
        self.name = name
        self.type = type_
        self.producer = producer
        self.data = data
        self._uses: dict[Node, int] = {}

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"

    @property
    def users(self) -> tuple[Node, ...]:
        """The distinct nodes that read this value, in the order they were connected."""
        return tuple(self._uses)

    @property
    def is_constant(self) -> bool:
        """True when the value's data is known."""
        return self.data is not None

    @property
    def array(self) -> Array:
        """The data of a constant.

        Raises:
            VerifyError: the value is not a constant.
        """
        if self.data is None:
            raise VerifyError(f"value {self.name!r} is not a constant")
        return self.data


class Node:
    """One operation.

    Attributes:
        op: name in the op table.
        inputs: operands; only `Graph` methods change them.
        outputs: results.
        attrs: the op's frozen attribute dataclass.
        loc: where the node came from: ONNX node or value name, carried to the device profile.
    """

    __slots__ = ("attrs", "inputs", "loc", "op", "outputs")

    def __init__(self, op: str, inputs: tuple[Value, ...], attrs: Any, loc: str) -> None:
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.loc = loc
        self.outputs: tuple[Value, ...] = ()

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(v.name for v in self.inputs)}) -> {', '.join(v.name for v in self.outputs)}"

    @property
    def output(self) -> Value:
        """The only result.

        Raises:
            VerifyError: the node has several.
        """
        if len(self.outputs) != 1:
            raise VerifyError(f"{self.op} {self.loc!r} has {len(self.outputs)} results, expected 1")
        return self.outputs[0]


class Graph:
    """A function from `inputs` to `outputs`.

    Attributes:
        name: model name.
        level: what the operators mean.
        source_hash: sha256 of the model file this graph came from, for plans; "" when built by hand.
        states: name of each input that a run leaves its successor -> name of the output it takes. The interpreter computes one
            run and takes all inputs; carrying states is the caller's, or the artifact's.
    """

    def __init__(self, name: str, level: Level = Level.FLOAT, source_hash: str = "") -> None:
        self.name = name
        self.level = level
        self.source_hash = source_hash
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.states: dict[str, str] = {}
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes in execution order (a snapshot: safe to rewrite while iterating)."""
        return tuple(self._nodes)

    @property
    def constants(self) -> tuple[Value, ...]:
        """Constants that some node or output uses, in first-use order."""
        seen: dict[Value, None] = {}
        for node in self._nodes:
            for value in node.inputs:
                if value.is_constant:
                    seen[value] = None
        for value in self.outputs:
            if value.is_constant:
                seen[value] = None
        return tuple(seen)

    def value(self, name: str) -> Value:
        """The value called `name`.

        Raises:
            KeyError: there is none.
        """
        return self._values[name]

    def values(self) -> Iterator[Value]:
        """Inputs, used constants and node results."""
        yield from self.inputs
        yield from self.constants
        for node in self._nodes:
            yield from node.outputs

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def is_output(self, value: Value) -> bool:
        """True when `value` leaves the graph."""
        return any(value is out for out in self.outputs)

    def sole_user(self, value: Value) -> Node | None:
        """The one node that reads `value` exactly once, if it has no other reader and is not a graph output."""
        if len(value._uses) != 1 or self.is_output(value):
            return None
        (user, count), *_ = value._uses.items()
        return user if count == 1 else None

    # Building --------------------------------------------------------------------------------------------------------

    def unique_name(self, hint: str) -> str:
        """`hint`, or `hint` with the first free numeric suffix."""
        if hint not in self._values:
            return hint
        i = 1
        while f"{hint}.{i}" in self._values:
            i += 1
        return f"{hint}.{i}"

    def _register(self, value: Value) -> Value:
        if value.name in self._values:
            raise VerifyError(f"graph {self.name!r} already has a value named {value.name!r}")
        self._values[value.name] = value
        return value

    def add_input(self, name: str, type_: TensorType, *, at: int | None = None) -> Value:
        """Append a graph input, or insert it at position `at`."""
        value = self._register(Value(name, type_))
        self.inputs.insert(len(self.inputs) if at is None else at, value)
        return value

    def drop_input(self, value: Value) -> None:
        """Remove a graph input that nobody reads.

        Raises:
            VerifyError: it is read, or leaves the graph.
        """
        if value._uses or self.is_output(value):
            raise VerifyError(f"cannot remove input {value.name!r}: it is still used")
        self.inputs.remove(value)
        del self._values[value.name]

    def add_constant(self, hint: str, data: Array, type_: TensorType | None = None) -> Value:
        """Add a constant named `hint` (made unique); the type is the array's own unless given (quantized codes)."""
        data = np.asarray(data)
        if type_ is None:
            type_ = TensorType(tuple(data.shape), elem_of_dtype(data.dtype))
        if type_.shape != data.shape or type_.dtype != data.dtype:
            raise VerifyError(f"constant {hint!r}: data is {data.dtype}{list(data.shape)}, its type says {type_}")
        return self._register(Value(self.unique_name(hint), type_, data=data))

    def add_node(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Any = None,
        *,
        names: Sequence[str] | None = None,
        loc: str = "",
        types: Sequence[TensorType] | None = None,
        before: Node | None = None,
    ) -> Node:
        """Append a node, or insert it before another; result types come from the op table unless given.

        Args:
            op: name in the op table.
            inputs: operands.
            attrs: the op's attribute dataclass; None takes the defaults.
            names: result names, made unique; derived from `loc` or the op when missing.
            loc: origin.
            types: result types that override the type rule's (element types only: shapes must agree).
            before: existing node to insert in front of.

        Raises:
            UnsupportedOp: the op is not in the table.
            VerifyError: operand types break the op's type rule, `types` differ from it in more than annotations, or an operand
                belongs to another graph.
        """
        from bevel.ir.ops import lookup

        spec = lookup(op)
        node = Node(op, tuple(inputs), attrs if attrs is not None else spec.attrs(), loc)
        results = spec.infer_node(node) if types is None else spec.checked_types(node, self.level, types)
        for value in dict.fromkeys(node.inputs):
            self._adopt(value)
        for i, type_ in enumerate(results):
            hint = names[i] if names is not None else (loc or op)
            node.outputs += (self._register(Value(self.unique_name(hint), type_, node)),)
        for value in node.inputs:
            self._connect(node, value)
        self._nodes.insert(self._nodes.index(before) if before is not None else len(self._nodes), node)
        return node

    def _adopt(self, value: Value) -> None:
        """Register a constant that lost its last reader earlier.

        Raises:
            VerifyError: the value belongs to another graph, or its node was removed.
        """
        if self._values.get(value.name) is value:
            return
        if not value.is_constant:
            raise VerifyError(f"graph {self.name!r} has no value {value.name!r}: it belongs to another graph or was removed")
        value.name = self.unique_name(value.name)
        self._values[value.name] = value

    def _connect(self, node: Node, value: Value) -> None:
        value._uses[node] = value._uses.get(node, 0) + 1

    def _disconnect(self, node: Node, value: Value) -> None:
        value._uses[node] -= 1
        if not value._uses[node]:
            del value._uses[node]
        if value.is_constant and not value._uses and not self.is_output(value):
            self._values.pop(value.name, None)

    # Rewriting -------------------------------------------------------------------------------------------------------

    def set_input(self, node: Node, index: int, value: Value) -> None:
        """Make `node` read `value` as its operand number `index`."""
        old = node.inputs[index]
        if old is value:
            return
        self._adopt(value)
        self._connect(node, value)
        node.inputs = (*node.inputs[:index], value, *node.inputs[index + 1 :])
        self._disconnect(node, old)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make every reader of `old`, graph outputs included, read `new`."""
        self._adopt(new)
        for user in old.users:
            for i, operand in enumerate(user.inputs):
                if operand is old:
                    self.set_input(user, i, new)
        self.outputs = [new if out is old else out for out in self.outputs]

    def rename(self, value: Value, name: str) -> None:
        """Give `value` a new unique name."""
        if name == value.name:
            return
        if name in self._values:
            raise VerifyError(f"graph {self.name!r} already has a value named {name!r}")
        self._adopt(value)
        del self._values[value.name]
        value.name = name
        self._values[name] = value

    def take_name(self, new: Value, old: Value) -> None:
        """Replace `old` by `new` everywhere and let `new` carry its name, so that outputs and plans keep theirs."""
        if old is new:
            return
        name = old.name
        self.replace_uses(old, new)
        self.rename(old, self.unique_name(f"{name}.old"))
        self.rename(new, name)

    def remove(self, node: Node) -> None:
        """Delete a node whose results nobody reads.

        Raises:
            VerifyError: a result is still used.
        """
        for out in node.outputs:
            if out._uses or self.is_output(out):
                raise VerifyError(f"cannot remove {node!r}: {out.name!r} is still used")
            del self._values[out.name]
        for value in node.inputs:
            self._disconnect(node, value)
        self._nodes.remove(node)

    def prune_dead(self) -> int:
        """Remove nodes whose results reach no output; returns how many."""
        removed = 0
        for node in reversed(self.nodes):
            if not any(out._uses or self.is_output(out) for out in node.outputs):
                self.remove(node)
                removed += 1
        return removed

    def clone(self, name: str | None = None) -> Graph:
        """A structural copy that shares constant data."""
        copy = Graph(name or self.name, self.level, self.source_hash)
        mapped: dict[Value, Value] = {}
        for value in self.inputs:
            mapped[value] = copy.add_input(value.name, value.type)
        for value in self.constants:
            mapped[value] = copy._register(Value(value.name, value.type, data=value.data))
        for node in self._nodes:
            twin = Node(node.op, tuple(mapped[v] for v in node.inputs), node.attrs, node.loc)
            for out in node.outputs:
                mapped[out] = copy._register(Value(out.name, out.type, twin))
                twin.outputs += (mapped[out],)
            for value in twin.inputs:
                copy._connect(twin, value)
            copy._nodes.append(twin)
        copy.outputs = [mapped[v] for v in self.outputs]
        copy.states = dict(self.states)
        return copy

    def set_outputs(self, values: Iterable[Value]) -> None:
        """Declare the graph's results."""
        self.outputs = list(values)
        for value in self.outputs:
            self._adopt(value)
