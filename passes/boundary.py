"""Passes `channels-last` and `float-outputs`: what the artifact's inputs and outputs look like.

channels-last:  %x: f32[1,3,H,W]   ->   %x: f32[1,H,W,3]; %x.nchw = Transpose(%x)
float-outputs:  output %y: q<i8>   ->   output %y: f32 = Dequantize(%y.codes)

Outputs that a state takes stay codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops import NoAttrs
from bevel.ir.ops.movement import TransposeAttrs
from bevel.ir.types import Quant

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class ChannelsLast:
    """Images at the boundary as [N, H, W, C].

    Attributes:
        inputs: transpose every input of rank 4.
        outputs: transpose every output of rank 4.
    """

    name: ClassVar[str] = "channels-last"
    inputs: bool = True
    outputs: bool = True

    def run(self, graph: Graph) -> Graph:
        """The graph whose images at the boundary have channels last; names stay."""
        result = graph.clone()
        first = result.nodes[0] if result.nodes else None
        for value in list(result.inputs) if self.inputs else []:
            if value.type.rank != 4:
                continue
            name, shape = value.name, value.type.shape
            result.rename(value, result.unique_name(f"{name}.model"))
            type_ = value.type.with_shape(tuple(shape[a] for a in _TO_NHWC))
            new = result.add_input(name, type_, at=result.inputs.index(value))
            turned = result.add_node(
                "Transpose", [new], TransposeAttrs(_TO_NCHW), names=[f"{name}.nchw"], loc=name, before=first
            ).output
            result.replace_uses(value, turned)
            result.drop_input(value)
        for value in list(result.outputs) if self.outputs else []:
            if value.type.rank == 4:
                turned = result.add_node("Transpose", [value], TransposeAttrs(_TO_NHWC), loc=value.name).output
                _leave_as(result, value.name, "nchw", turned)
        return result


@dataclass(frozen=True)
class FloatOutputs:
    """Outputs of an INTEGER graph as float32 instead of codes; other graphs give floats already."""

    name: ClassVar[str] = "float-outputs"

    def run(self, graph: Graph) -> Graph:
        """The graph with a Dequantize in front of every quantized output."""
        result = graph.clone()
        for value in list(result.outputs) if graph.level is Level.INTEGER else []:
            if isinstance(value.type.elem, Quant) and value.name not in graph.states.values():
                real = result.add_node("Dequantize", [value], NoAttrs(), loc=value.name).output
                _leave_as(result, value.name, "codes", real)
        return result


def _leave_as(graph: Graph, name: str, suffix: str, new: Value) -> None:
    """Let `new` leave the graph in the place, and under the name, of output `name`."""
    old = graph.value(name)
    graph.outputs = [new if out is old else out for out in graph.outputs]
    if old.producer is not None:
        graph.rename(old, graph.unique_name(f"{name}.{suffix}"))
        graph.rename(new, name)
