"""The layers whose bits are to be chosen, and the kernel calls that compute them.

In: the canonical float graph of a model and what a plan allows; the calls of the same model at some precision. Out: one `Layer`
for each convolution or GEMM that the plan leaves to the device, and its `Work` at that precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bevel.backends.calls import Call
from bevel.backends.kernel import ConvProblem
from bevel.ir.graph import Graph
from bevel.ir.ops import Trait, lookup
from bevel.ir.plan import W8A8, Bits, CompressionPlan, LayerPlan
from bevel.passes.quantize.precision import first_and_last


@dataclass(frozen=True)
class Layer:
    """A layer that leaves its bits to the device.

    Attributes:
        name: the value it computes, as plans call it.
        label: what kernel calls and reports call it.
        turn: how many layers of this label come before it.
        allowed: precisions to choose among, most bits first; only w8a8 for the first and the last layer of a plan that does not
            name them.
        is_end: whether it is the first or the last.
    """

    name: str
    label: str
    turn: int
    allowed: tuple[Bits, ...]
    is_end: bool


@dataclass(frozen=True)
class Work:
    """What a layer is to a device at some precision.

    Attributes:
        problem: of its kernel.
        converted: elements that pass through tables, into the codes it reads, because others read or make them otherwise.
    """

    problem: ConvProblem
    converted: int


def open_layers(canonical: Graph, plan: CompressionPlan, named: Iterable[str]) -> list[Layer]:
    """The layers of a canonical float graph whose bits `plan` leaves open, in execution order.

    Args:
        canonical: the graph.
        plan: leaves bits to the device.
        named: the names that a plan may use, those of the imported model.
    """
    weighted = [node for node in canonical.nodes if Trait.WEIGHTED in lookup(node.op).traits]
    ends, names = first_and_last(canonical, weighted), set(named)
    turns: dict[str, int] = {}
    found = []
    for node in weighted:
        # Graphs made by hand may have no names of layers; calls then have those of the sums.
        name, label = node.output.name, node.loc or f"{node.output.name}.acc"
        turn = turns.get(label, 0)
        turns[label] = turn + 1
        own = plan.layers.get(name, LayerPlan())
        if own.bits is None and name in names:
            allowed = own.allow or ((W8A8,) if node in ends else plan.allow)
            found.append(Layer(name, label, turn, allowed, node in ends))
    return found


def works(layers: Sequence[Layer], calls: Sequence[Call]) -> dict[Layer, Work]:
    """What the layers that compute on codes are to a device, from the model's kernel calls."""
    problems: dict[str, list[ConvProblem]] = {}
    converted: dict[str, int] = {}
    for call in calls:
        if not isinstance(call.problem, ConvProblem):
            converted[call.layer] = converted.get(call.layer, 0) + call.problem.outputs[0].size
        elif call.op.startswith(("IntConv", "IntGemm")):
            problems.setdefault(call.layer, []).append(call.problem)
    return {
        layer: Work(problems[layer.label][layer.turn], converted.get(layer.label, 0))
        for layer in layers
        if layer.turn < len(problems.get(layer.label, ()))
    }


def resolved(plan: CompressionPlan, chosen: Mapping[str, Bits]) -> CompressionPlan:
    """The ordinary plan that gives layers, by name, the bits that were chosen for them, and 8 to the others left open."""
    layers = {name: replace(layer, allow=None) for name, layer in plan.layers.items()}
    for name, bits in chosen.items():
        if bits != W8A8 or name in layers:
            layers[name] = replace(layers.get(name, LayerPlan()), bits=bits)
    return replace(plan, bits=W8A8, allow=(), layers=layers)
