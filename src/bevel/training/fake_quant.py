"""An ANNOTATED graph as a torch module whose weights, biases and step sizes are learned, and back.

In: an ANNOTATED graph of types that integers can be multiplied in. Out: its outputs on batches, with gradients; the graph again,
with what was learned, whose codes are those of the forward.

Every quantized value is kept as centred codes and a step (`lsq`): layers multiply codes, so their sums are exact in float32, and
what is trained is what the INTEGER graph computes but for its dyadic factors. For speed the products may be of bfloat16 instead:
codes are exact in it, sums are rounded to its 8 bits.

Parameters are free of scale, so that one learning rate fits all: a weight counts root mean squares of its channel, a bias sums of
a layer whose products are all one step, a step its own beginning.

Imports torch; callers import this file when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bevel.errors import InvalidPlan, UsageError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import QuantRule, Trait, lookup
from bevel.ir.types import Codebook, Quant
from bevel.passes.quantize.calibrate import retype
from bevel.passes.quantize.scales import MAX_BIAS, bias_type
from bevel.training.lsq import quantize, rescaled, rounded
from bevel.training.torch_graph import bound, constant_tensor, convolution, function_of, product, symbols_of

Array = npt.NDArray[Any]

# A step stays above this share of its beginning: the next update could make it negative.
LEAST_STEP = 2.0**-5
# How far from its code a weight may begin, in steps: nearer than half, so that the first codes are those of the graph.
FIRST_ERROR = 0.4
# How far inside the outermost codes a weight begins, in steps: beyond them it gets no gradient, and would stay for good.
EDGE = 0.1


@dataclass(frozen=True)
class Coded:
    """A quantized value: centred codes and their step."""

    codes: Tensor
    step: Tensor

    @property
    def real(self) -> Tensor:
        """float32 step * codes."""
        return self.codes.float() * self.step


class _Layer(nn.Module):  # type: ignore[misc]  # torch is not typed where it is not installed
    """Weights and bias of a Conv or Gemm on codes.

    Args:
        node: of an ANNOTATED graph.
        weights: reals to begin with, where the graph's codes allow it; None for what the codes stand for.
        lowest: least weight code in use.
    """

    def __init__(self, node: Node, weights: Array | None, lowest: int) -> None:
        super().__init__()
        name, elem = node.output.name, node.inputs[1].type.elem
        if not isinstance(elem, Quant):
            raise InvalidPlan(f"layer {name!r}: weights are {elem}, and tables are not trained; use uniform levels")
        self._function = convolution if node.op == "Conv" else product
        self._shape = (1, -1, 1, 1) if node.op == "Conv" else (-1,)
        codes = node.inputs[1].array.astype(np.float64)
        wide = (-1, *[1] * (codes.ndim - 1))
        scale = np.broadcast_to(np.asarray(elem.scale, np.float32), (len(codes),)).astype(np.float64).reshape(wide)
        self.bipolar = elem.storage.bipolar
        self.lo, self.hi = float(lowest), float(elem.storage.max)
        near = codes if weights is None else weights.astype(np.float64) / scale
        if self.bipolar:
            start = codes * np.clip(codes * near, EDGE, 1 - EDGE)
        else:
            start = np.clip(near, codes - FIRST_ERROR, codes + FIRST_ERROR).clip(self.lo + EDGE, self.hi - EDGE)
        size = np.sqrt((start**2).mean(axis=tuple(range(1, start.ndim)), keepdims=True))
        unit = scale * np.where(size > 0, size, 1.0)
        x = node.inputs[0].type.elem
        assert isinstance(x, Quant)
        sums = scale.reshape(-1) * x.scale[0] * math.sqrt(codes[0].size)
        bias = node.inputs[2] if len(node.inputs) == 3 else None
        reals = np.zeros(len(codes)) if bias is None else bias.type.elem.dequantize(bias.array)  # type: ignore[union-attr]
        self.register_buffer("unit", torch.from_numpy(unit.astype(np.float32)))
        self.register_buffer("first_step", torch.from_numpy(scale.astype(np.float32)))
        self.register_buffer("bias_unit", torch.from_numpy(sums.astype(np.float32)))
        self.weight = nn.Parameter(torch.from_numpy((start * scale / unit).astype(np.float32)))
        self.step_ratio = nn.Parameter(torch.ones_like(self.first_step))
        self.bias = nn.Parameter(torch.from_numpy((reals / sums).astype(np.float32)), requires_grad=bias is not None)

    @property
    def step(self) -> Tensor:
        """Of each output channel, shaped to broadcast to the weights."""
        return self.first_step * self.step_ratio

    def codes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of the weights."""
        w = self.weight * self.unit
        return quantize(w, self.step, self.lo, self.hi, count=w[0].numel(), bipolar=self.bipolar, dtype=dtype)

    def sum_step(self, x_step: Tensor) -> Tensor:
        """Reals that a sum of one stands for, for each channel."""
        return (self.step.detach() * x_step).reshape(-1)

    def bias_codes(self, x_step: Tensor) -> Tensor:
        """At the step of the sums."""
        return rounded(torch.clamp(self.bias * self.bias_unit / self.sum_step(x_step), -MAX_BIAS, MAX_BIAS))

    def forward(self, at: Any, x: Coded, dtype: torch.dtype) -> Tensor:
        """Reals of the layer's result."""
        sums = self._function(at, x.codes.to(dtype), self.codes(dtype))
        return rescaled(sums, self.bias_codes(x.step).reshape(self._shape), self.sum_step(x.step).reshape(self._shape))


class FakeQuantNet(nn.Module):  # type: ignore[misc]
    """An ANNOTATED graph to train.

    What has a fixed type keeps it: inputs, and results of operators that define their own. All else that shares a type after
    calibration shares a step: codes are moved and joined without a second rounding.

    Attributes:
        dtype: of products of codes: float32 is exact.

    Args:
        graph: ANNOTATED.
        source: the FLOAT graph it was made from: its weights say where between two thresholds a weight begins.
        lowest: least weight code of layers that do not use all of their type's, by the name of their result.

    Raises:
        UsageError: `graph` has another level, or states.
        InvalidPlan: weights are in tables.
        UnsupportedOp: an operator has no differentiable form.
    """

    def __init__(self, graph: Graph, source: Graph | None = None, lowest: Mapping[str, int] | None = None) -> None:
        super().__init__()
        if graph.level is not Level.ANNOTATED:
            raise UsageError(f"training: graph {graph.name!r} is at {graph.level.value} level, expected annotated")
        if graph.states:
            raise UsageError(f"training: graph {graph.name!r} carries states from run to run; train it without --state")
        self.dtype = torch.float32
        self._graph = graph
        self._functions = [function_of(node) for node in graph.nodes]
        self._layers: dict[Node, _Layer] = {}
        self.layers = nn.ModuleList()
        for node in graph.nodes:
            if _is_layer(node):
                weights = _weights_of(source, node)
                least = (lowest or {}).get(node.output.name, _least(node))
                self._layers[node] = _Layer(node, weights, least)
                self.layers.append(self._layers[node])
        trained = {value for node in self._layers for value in node.inputs[1:]}
        self._constants = {value: constant_tensor(value) for value in graph.constants if value not in trained}
        self.step_ratios = nn.ParameterList()
        self._steps: dict[Quant, tuple[float, Tensor | None]] = {}
        self._counts: dict[Quant, int] = {}
        fixed = {v.type.elem for v in graph.inputs} | {
            v.type.elem for n in graph.nodes if lookup(n.op).quant is QuantRule.FIXED for v in n.outputs
        }
        for value in graph.values():
            elem = value.type.elem
            if isinstance(elem, Quant) and not value.is_constant:
                count = int(np.prod([d for d in value.type.shape if isinstance(d, int)]))
                self._counts[elem] = max(self._counts.get(elem, 1), count)
                if elem not in self._steps:
                    ratio = None if elem in fixed else nn.Parameter(torch.ones(()))
                    self._steps[elem] = (elem.scale[0], ratio)
                    if ratio is not None:
                        self.step_ratios.append(ratio)

    @property
    def steps(self) -> list[nn.Parameter]:
        """The parameters that are steps, each over its beginning."""
        return [*self.step_ratios, *(layer.step_ratio for layer in self._layers.values())]

    def constrain(self) -> None:
        """Keep steps positive; to be called after every update."""
        with torch.no_grad():
            for ratio in self.steps:
                ratio.clamp_(min=LEAST_STEP)

    def step_of(self, elem: Quant) -> Tensor:
        """The step that values of type `elem` have by now."""
        first, ratio = self._steps[elem]
        step = torch.tensor(np.float32(first))
        return step if ratio is None else step * ratio

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor | Coded]:
        """The graph's outputs, in order: codes where they are quantized."""
        symbols = symbols_of(self._graph, inputs)
        known: dict[Value, Tensor | Coded] = dict(self._constants)
        for value in self._graph.inputs:
            known[value] = self._held(value, inputs[value.name])
        for node, function in zip(self._graph.nodes, self._functions, strict=True):
            at, value = bound(node, symbols), node.output
            operands = [known[v] for v in node.inputs if v in known]
            first = operands[0]
            if node in self._layers:
                assert isinstance(first, Coded)
                known[value] = self._held(value, self._layers[node](at, first, self.dtype))
            elif _moves_codes(node):
                assert isinstance(first, Coded)
                codes = [x.codes if isinstance(x, Coded) else x for x in operands]
                known[value] = Coded(function(at, *codes), first.step)
            else:
                reals = [x.real if isinstance(x, Coded) else x for x in operands]
                known[value] = self._held(value, reals[0] if _left_to_codes(node) else function(at, *reals))
        return [known[v] for v in self._graph.outputs]

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Reals of the graph's outputs, in order."""
        return [x.real if isinstance(x, Coded) else x for x in self.run(inputs)]

    def _held(self, value: Value, real: Tensor) -> Tensor | Coded:
        elem = value.type.elem
        if not isinstance(elem, Quant):
            return real
        zero, storage, step = elem.zero_point[0], elem.storage, self.step_of(elem)
        # What no layer multiplies would be converted forth and back for nothing.
        dtype = self.dtype if any(n in self._layers or _moves_codes(n) for n in value.users) else torch.float32
        codes = quantize(real.float(), step, storage.min - zero, storage.max - zero, count=self._counts[elem], dtype=dtype)
        return Coded(codes, step.detach())

    def annotated(self) -> Graph:
        """The graph with what was learned: weights and biases as the codes of the forward, steps as scales."""
        result = self._graph.clone()
        with torch.no_grad():
            types = {elem: Quant(elem.storage, (float(self.step_of(elem)),), elem.zero_point) for elem in self._steps}
            for value in result.values():
                if not value.is_constant and isinstance(value.type.elem, Quant):
                    value.type = value.type.with_elem(types[value.type.elem])
            for node in self._layers:
                twin = result.value(node.output.name).producer
                assert twin is not None
                self._write(result, twin, self._layers[node])
        return result

    def _write(self, graph: Graph, node: Node, layer: _Layer) -> None:
        x, w = node.inputs[0].type.elem, node.inputs[1].type.elem
        assert isinstance(x, Quant)
        assert isinstance(w, Quant)
        elem = Quant(w.storage, tuple(layer.step.reshape(-1).tolist()), (0,), axis=0)
        retype(graph, node, 1, layer.codes().numpy().astype(elem.dtype), elem)
        if len(node.inputs) == 3:
            codes = layer.bias_codes(torch.tensor(np.float32(x.scale[0])))
            retype(graph, node, 2, codes.numpy().astype(np.int64).astype(np.int32), bias_type(x.scale[0], elem))

    def real_weights(self) -> dict[str, tuple[Array, Array]]:
        """Weights and bias of every layer before rounding, by the name of its result."""
        with torch.no_grad():
            return {
                node.output.name: ((layer.weight * layer.unit).numpy().copy(), (layer.bias * layer.bias_unit).numpy().copy())
                for node, layer in self._layers.items()
            }


def with_weights(graph: Graph, weights: Mapping[str, tuple[Array, Array]]) -> Graph:
    """The FLOAT `graph` with other weights and biases, by the names of their layers' results."""
    result = graph.clone()
    for name, (weight, bias) in weights.items():
        node = result.value(name).producer
        assert node is not None
        constants = [result.add_constant(f"{name}.{what}", array) for what, array in (("weight", weight), ("bias", bias))]
        twin = result.add_node(node.op, [node.inputs[0], *constants], node.attrs, loc=node.loc, before=node)
        result.take_name(twin.output, node.output)
        result.remove(node)
    return result


def _is_layer(node: Node) -> bool:
    """Whether a node multiplies codes by weights."""
    weighted = Trait.WEIGHTED in lookup(node.op).traits
    return weighted and all(isinstance(v.type.elem, Quant | Codebook) for v in node.inputs[:2])


def _moves_codes(node: Node) -> bool:
    """Whether a node's codes are codes of what it reads: moved, or the greatest of some."""
    elem = node.output.type.elem
    if Trait.MOVEMENT not in lookup(node.op).traits or not isinstance(elem, Quant):
        return False
    if node.op == "Pad" and node.attrs.mode == "constant" and node.attrs.value != 0.0:
        return False
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    return all(v.type.elem == elem and not v.is_constant for v in data)


def _left_to_codes(node: Node) -> bool:
    """Whether quantization does what a node does, gradients included: conversions, and a Relu before codes from zero up."""
    if node.op == "Clip":
        return _is_conversion(node)
    value = node.output
    if len(value.users) == 1 and _is_conversion(value.users[0]) and not isinstance(value.type.elem, Quant):
        value = value.users[0].output
    elem = value.type.elem
    return node.op == "Relu" and isinstance(elem, Quant) and elem.zero_point[0] == elem.storage.min


def _is_conversion(node: Node) -> bool:
    """True for an unbounded Clip, which only gives its result another type."""
    return node.op == "Clip" and (node.attrs.lo, node.attrs.hi) == (-math.inf, math.inf)


def _least(node: Node) -> int:
    """The least weight code of a layer's type; -128 is not in use (`passes.quantize.weights`)."""
    elem = node.inputs[1].type.elem
    assert isinstance(elem, Quant)
    return -elem.storage.max if elem.storage.bits == 8 else elem.storage.min


def _weights_of(source: Graph | None, node: Node) -> Array | None:
    name = node.output.name
    origin = source.value(name).producer if source is not None and name in source else None
    return None if origin is None else origin.inputs[1].array
