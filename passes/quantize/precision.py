"""How many bits: which precision each layer of a float graph has, and where its values take fewer bits than 8.

    %y: f32 = Add(%a, %b)                        %y: f32 = Add(%a, %b)
    %c: f32 = Conv(%y, ...)   at 4 bits   ->     %y.a4: f32 = Clip(%y)                 (no bounds: it carries the 4-bit type)
    %z: f32 = Add(%y, %c)                        %c: f32 = Conv(%y.a4, ...)
                                                 %z: f32 = Add(%y, %c)

What a layer reads has the layer's bits; everything else has 8, the residual stream those that the plan gives it. So a value that
only layers of few bits read is computed at their bits at once: the Clip then merges into what makes it, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bevel.errors import InvalidPlan
from bevel.ir.graph import Graph, Node, Value
from bevel.ir.ops import QuantRule, Trait, lookup
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.plan import W8A8, Bits, CompressionPlan
from bevel.passes.quantize.weights import WeightForm

CODE_BITS = 8
_SUMS = ("Add", "Sub")


@dataclass
class Precision:
    """The precision of a graph's layers and values.

    Attributes:
        layers: bits of each weighted layer that computes on codes.
        forms: how its weights become codes.
        values: bits of the values that have fewer than 8.
    """

    layers: dict[Node, Bits] = field(default_factory=dict)
    forms: dict[Node, WeightForm] = field(default_factory=dict)
    values: dict[Value, int] = field(default_factory=dict)

    def of(self, value: Value) -> int:
        """Bits of the type that `value` gets."""
        return self.values.get(value, CODE_BITS)


def assign_precision(graph: Graph, plan: CompressionPlan, islands: set[Node]) -> Precision:
    """Choose bits for the layers and values of a FLOAT graph, inserting conversions in place.

    Args:
        graph: gets an unbounded Clip in front of layers that read fewer bits than their operand has.
        plan: says what is asked of each layer. Below 8 bits its first and last layers are 8 bits unless it names them.
        islands: nodes that stay float.

    Raises:
        InvalidPlan: the plan says of what has no weights how its weights become codes.
    """
    found = Precision()
    layers = [n for n in graph.nodes if Trait.WEIGHTED in lookup(n.op).traits]
    _require_weights(plan, {n.output.name for n in layers})
    ends = first_and_last(graph, layers) if _is_low(plan.bits) else set()
    for node in layers:
        if node in islands:
            continue
        own = plan.layer(node.output.name)
        spoken = plan.layers.get(node.output.name)
        bits = W8A8 if node in ends and (spoken is None or spoken.bits is None) else own.bits
        assert bits is not None
        found.layers[node] = bits
        # Tables are for few bits: layers that keep 8 do without them unless they ask.
        levels = "uniform" if bits == W8A8 and (spoken is None or spoken.levels is None) else own.levels
        found.forms[node] = WeightForm(bits.weights, own.granularity or "", own.scales or "", levels or "")
        if spoken is not None and spoken.granularity is not None:
            _require_groups(node, found.forms[node])
    stream = _stream(graph, islands) if plan.stream < CODE_BITS else set()
    _convert(graph, found, {value: plan.stream for value in stream}, islands)
    return found


def _require_weights(plan: CompressionPlan, weighted: Collection[str]) -> None:
    for name, layer in plan.layers.items():
        about_weights = layer.granularity or layer.scales or layer.levels or (layer.bits is not None and _is_low(layer.bits))
        if about_weights and name not in weighted:
            raise InvalidPlan(
                f"layer {name!r} has no weights, so the plan can only keep it in fp32 or at 8 bits; layers with weights are "
                f"{', '.join(sorted(weighted))}"
            )


def _require_groups(node: Node, form: WeightForm) -> None:
    """Where a plan's default asks for groups, layers that cannot have them do without; one that it names may not."""
    why = form.why_ungrouped(node.inputs[1].type.static_shape)
    if why is not None:
        raise InvalidPlan(
            f"layer {node.output.name!r}: granularity {form.granularity!r} is out of reach: {why}; leave granularity out of the "
            "layer, or ask for 'channel'"
        )


def _is_low(bits: Bits) -> bool:
    return not bits.is_float and min(bits.weights, bits.activations) < CODE_BITS


def first_and_last(graph: Graph, layers: list[Node]) -> set[Node]:
    """Layers before which, or behind which, there is no other."""
    weighted = set(layers)
    follows: set[Node] = set()
    for node in graph.nodes:
        if any(v.producer in weighted or v.producer in follows for v in node.inputs):
            follows.add(node)
    leads: set[Node] = set()
    for node in reversed(graph.nodes):
        if any(user in weighted or user in leads for v in node.outputs for user in v.users):
            leads.add(node)
    return {node for node in layers if node not in follows or node not in leads}


def _stream(graph: Graph, islands: set[Node]) -> set[Value]:
    """What additions of two activations make, behind their activations, and what they read that others read too."""
    found: set[Value] = set()
    for node in graph.nodes:
        if node.op not in _SUMS or node in islands or any(v.is_constant for v in node.inputs):
            continue
        found.update(_origin(v) for v in node.inputs if len(v.users) > 1)
        value = node.output
        while (user := graph.sole_user(value)) is not None and Trait.ACTIVATION in lookup(user.op).traits:
            value = user.output
        found.add(value)
    return found


def _origin(value: Value) -> Value:
    """What is moved to become `value`; its type is what decides."""
    while value.producer is not None and _moves(value.producer):
        value = value.producer.inputs[0]
    return value


def _convert(graph: Graph, precision: Precision, stream: Mapping[Value, int], islands: set[Node]) -> None:
    """Insert conversions in execution order, so that what they change is known to those behind."""
    for value in [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]:
        have = stream.get(value, _inherited(value, precision))
        if have < CODE_BITS:
            precision.values[value] = have
        readers: dict[int, list[Node]] = {}
        for user in dict.fromkeys(value.users):
            if (bits := _wanted(graph, user, value, precision, islands)) < have:
                readers.setdefault(bits, []).append(user)
        for bits, users in readers.items():
            first = next(n for n in graph.nodes if n in users)
            name = graph.unique_name(f"{value.name}.a{bits}")
            narrow = graph.add_node("Clip", [value], ClipAttrs(), names=[name], loc=users[0].loc, before=first).output
            precision.values[narrow] = bits
            for user in users:
                for index, operand in enumerate(user.inputs):
                    if operand is value:
                        graph.set_input(user, index, narrow)


def _moves(node: Node) -> bool:
    """Whether a node gives what it reads the same type at other places."""
    spec = lookup(node.op)
    return Trait.MOVEMENT in spec.traits and spec.quant is QuantRule.SAME and len(node.inputs) == len(node.outputs) == 1


def _inherited(value: Value, precision: Precision) -> int:
    """Bits of a value before any conversion: those of what is moved."""
    node = value.producer
    return precision.of(node.inputs[0]) if node is not None and _moves(node) else CODE_BITS


def _wanted(graph: Graph, user: Node, value: Value, precision: Precision, islands: set[Node]) -> int:
    """Bits at which `user` reads `value`."""
    if user in islands:
        return CODE_BITS
    if user in precision.layers and user.inputs[0] is value:
        return precision.layers[user].activations
    if _moves(user) and not graph.is_output(user.output) and user.output.users:
        return max(_wanted(graph, reader, user.output, precision, islands) for reader in user.output.users)
    return CODE_BITS
