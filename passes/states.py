"""Pass `keep-states`: declare which inputs a run leaves its successor, taken from which outputs.

input %h: f32[1,16]                       input %h: f32[1,16]
output %hn: f32[1,16]            ->       output %hn: f32[1,16]
                                          state %h = %hn

The graph computes what it did. Later passes keep both types the same (`calibrate` gives them one range), and the artifact copies
the output's bytes into the input after each run (docs/states.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.errors import UsageError
from bevel.ir.dims import bound_type
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.types import F32, Dim, Quant, TensorType


@dataclass(frozen=True)
class KeepStates:
    """Declare states.

    Attributes:
        states: INPUT=OUTPUT of each.
    """

    name: ClassVar[str] = "keep-states"
    states: tuple[str, ...] = ()

    def run(self, graph: Graph) -> Graph:
        """The graph with these states besides those it has.

        Raises:
            UsageError: there is no such input or output, an input is a state twice, or its type is not that of the output;
                names both.
        """
        result = graph.clone()
        for pair in self.states:
            name, separator, output = pair.partition("=")
            if not separator:
                raise UsageError(f"state {pair!r}: expected INPUT=OUTPUT, for example h=hn")
            state = _named(result, "input", name, pair)
            after = _named(result, "output", output, pair)
            if result.states.get(name, output) != output:
                raise UsageError(f"state {pair}: input {name!r} takes output {result.states[name]!r} already")
            _check_types(result, pair, state, after)
            if result.level is Level.ANNOTATED and state.type.elem != after.type.elem:
                _convert(result, state, after)
            if state.type.elem != result.value(output).type.elem:
                raise UsageError(
                    f"state {pair}: input {name!r} is {state.type} and output {output!r} {after.type}; both must be of one type"
                )
            if isinstance(state.type.elem, Quant) and state.type.elem.storage.bits > 8:
                raise UsageError(f"state {pair}: input {name!r} is {state.type}; states have codes of at most 8 bits, or none")
            result.states[name] = output
        return result


def _named(graph: Graph, side: str, name: str, pair: str) -> Value:
    values = {v.name: v for v in (graph.inputs if side == "input" else graph.outputs)}
    if name not in values:
        raise UsageError(f"state {pair}: {name!r} is no {side} of {graph.name!r}; its {side}s are {', '.join(values)}")
    return values[name]


def _check_types(graph: Graph, pair: str, state: Value, after: Value) -> None:
    """Equal shapes, fixed once leading batch axes are 1, and elements that are stored alike or can be."""
    batch = {v.type.shape[0] for v in graph.inputs if v.type.shape}
    ones: dict[str, int | Dim] = {d.name: 1 for d in batch if isinstance(d, Dim) and d.hi is None}
    before, behind = bound_type(state.type, ones), bound_type(after.type, ones)
    for value, type_ in ((state, before), (after, behind)):
        open_dims = [d for d in type_.shape if isinstance(d, Dim)]
        if open_dims:
            raise UsageError(
                f"state {pair}: {value.name!r} is {type_}: the shape of a state is fixed; bind dimension {open_dims[0].name!r} "
                f"with --dim {open_dims[0].name}=N"
            )
    if before.shape != behind.shape or (not (_real(before) and _real(behind)) and before.elem != behind.elem):
        raise UsageError(
            f"state {pair}: input {state.name!r} is {before} and output {after.name!r} {behind}; both must be of one type"
        )


def _real(type_: TensorType) -> bool:
    return type_.elem == F32 or isinstance(type_.elem, Quant)


def _convert(graph: Graph, state: Value, after: Value) -> None:
    """Give both the quantized type that one of them has: the input's, where it has one."""
    if not isinstance(state.type.elem, Quant):
        state.type = state.type.with_elem(after.type.elem)
        return
    converted = graph.add_node("Clip", [after], ClipAttrs(), types=[after.type.with_elem(state.type.elem)], loc=after.name).output
    name = after.name
    graph.set_outputs([converted if v is after else v for v in graph.outputs])
    graph.rename(after, graph.unique_name(f"{name}.own"))
    graph.rename(converted, name)
