"""Pass `fold-affine`: constants that scale or shift the channels of a convolution or product move into its weights and bias.

%a = Gemm(%x, %w)                            %y = Gemm(%x, %w, %b)
%y = Add(%a, %b)                     ->

%a = Conv(%x, %w, %b)                        %y = Conv(%x, %w', %b')     w' = w * s, b' = b * s
%y = Mul(%a, %s)

Weights that are codes keep them: their scales take the factors (`bevel.passes.scaled_codes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Graph, Node, Value
from bevel.ir.types import Quant
from bevel.passes.rewrite import float_data, is_float, replace, sole_producer
from bevel.passes.scaled_codes import scaled_codes

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FoldAffine:
    """Fold per-channel Mul and Add behind Conv and Gemm."""

    name: ClassVar[str] = "fold-affine"

    def run(self, graph: Graph) -> Graph:
        """The graph with foldable Mul and Add gone; equal up to float32 rounding."""
        result = graph.clone()
        for node in result.nodes:
            if node.op in ("Add", "Mul"):
                for index in (0, 1):
                    layer = sole_producer(result, node, index, "Conv", "ConvTranspose", "Gemm")
                    if layer is not None and _fold(result, node, layer, node.inputs[1 - index]):
                        break
        result.prune_dead()
        return result


def channel_axis(layer: Node) -> int:
    """The result axis of a convolution's or Gemm's output channels."""
    return layer.output.type.rank - 1 if layer.op == "Gemm" else 1


def _per_channel(constant: Value, layer: Node) -> bool:
    """True when the constant broadcasts along the layer's channel axis alone."""
    shape, rank, axis = constant.type.shape, layer.output.type.rank, channel_axis(layer)
    if len(shape) > rank:
        return False
    aligned = (1,) * (rank - len(shape)) + shape
    return all(d == 1 or (i == axis and d == layer.output.type.shape[axis]) for i, d in enumerate(aligned))


def _fold(graph: Graph, node: Node, layer: Node, constant: Value) -> bool:
    if not is_float(layer.output) or not constant.is_constant or not _per_channel(constant, layer):
        return False
    channels = layer.output.type.shape[channel_axis(layer)]
    assert isinstance(channels, int)
    elem = constant.type.elem
    if node.op == "Add" and len(layer.inputs) == 2 and isinstance(elem, Quant) and constant.type.shape == (channels,):
        replace(graph, node, layer.op, [*layer.inputs, constant], layer.attrs, loc=layer.loc)
        return True
    data = float_data(constant)
    if data is None:
        return False
    vector = np.broadcast_to(data.reshape(-1), (channels,)).astype(np.float64)
    factor, shift = (None, vector) if node.op == "Add" else (vector, np.zeros(channels))
    return fold_into(graph, node, layer, factor, shift)


def _scale_channels(layer: Node, weights: Array, factor: Array) -> Array:
    """`weights` of a layer with its output channels multiplied by `factor` [O], in float64."""
    if layer.op == "ConvTranspose":
        # [C, O / groups, KH, KW]: each group of input channels has output channels of its own.
        grouped = weights.reshape(layer.attrs.groups, -1, *weights.shape[1:])
        return np.asarray(grouped * factor.reshape(len(grouped), 1, -1, 1, 1)).reshape(weights.shape)
    return np.asarray(weights * factor.reshape(-1, *[1] * (weights.ndim - 1)))


def _real_bias(bias: Value) -> Array | None:
    """The numbers of a constant bias, None where it is computed."""
    elem = bias.type.elem
    return elem.dequantize(bias.array) if bias.is_constant and isinstance(elem, Quant) else float_data(bias)


def fold_into(graph: Graph, node: Node, layer: Node, factor: Array | None, shift: Array) -> bool:
    """Replace `node`, which computes layer * factor + shift per output channel, by the layer with folded constants.

    Args:
        graph: graph to change.
        node: the node whose result the layer takes over.
        layer: Conv, ConvTranspose or Gemm that only `node` reads.
        factor: float64 [O]; None for 1.
        shift: float64 [O].

    Returns:
        False, changing nothing, where the layer's constants cannot take it.
    """
    bias = _real_bias(layer.inputs[2]) if len(layer.inputs) == 3 else np.zeros(shift.size, np.float32)
    if bias is None:
        return False
    kernel = layer.inputs[1]
    folded_bias = bias.astype(np.float64)
    if factor is not None:
        weights, name = float_data(kernel), f"{kernel.name}.folded"
        if weights is not None:
            kernel = graph.add_constant(name, _scale_channels(layer, weights, factor).astype(np.float32))
        elif (scaled := scaled_codes(layer, factor)) is not None:
            codes, elem = scaled
            kernel = graph.add_constant(name, codes, kernel.type.with_elem(elem))
        else:
            return False
        folded_bias = folded_bias * factor
    hint = f"{layer.inputs[2].name}.folded" if len(layer.inputs) == 3 else f"{node.output.name}.bias"
    new_bias = graph.add_constant(hint, (folded_bias + shift).astype(np.float32))
    replace(graph, node, layer.op, [layer.inputs[0], kernel, new_bias], layer.attrs, loc=layer.loc)
    return True
