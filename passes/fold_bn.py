"""Pass `fold-bn`: batch normalization with stored statistics moves into the layer before it, or becomes a 1x1 depthwise one.

    %c = Conv(%x, %w, %b)                                        %y = Conv(%x, %w', %b')
    %y = BatchNormalization(%c, %scale, %bias, %mean, %var)  ->

with f = scale / sqrt(var + epsilon), w' = w * f, b' = (b - mean) * f + bias, computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bevel.ir.graph import Graph, Node
from bevel.ir.ops.convolution import ConvAttrs
from bevel.passes.fold_affine import channel_axis, fold_into
from bevel.passes.rewrite import float_data, is_float, replace, sole_producer


@dataclass(frozen=True)
class FoldBn:
    """Fold BatchNormalization (Jacob et al., 2018, section 3.2) into convolutions and products."""

    name: ClassVar[str] = "fold-bn"

    def run(self, graph: Graph) -> Graph:
        """The graph without BatchNormalization over constants; equal up to float32 rounding."""
        result = graph.clone()
        for node in result.nodes:
            if node.op == "BatchNormalization":
                _fold(result, node)
        result.prune_dead()
        return result


def _fold(graph: Graph, node: Node) -> None:
    statistics = [float_data(v) for v in node.inputs[1:]]
    scale, bias, mean, variance = (None if s is None else s.astype(np.float64) for s in statistics)
    if scale is None or bias is None or mean is None or variance is None:
        return
    factor = scale / np.sqrt(variance + node.attrs.epsilon)
    shift = bias - mean * factor
    layer = sole_producer(graph, node, 0, "Conv", "ConvTranspose", "Gemm")
    if layer is not None and is_float(layer.output) and channel_axis(layer) == 1 and fold_into(graph, node, layer, factor, shift):
        return
    if node.inputs[0].type.rank == 4:
        name, channels = node.output.name, factor.size
        weights = graph.add_constant(f"{name}.weight", factor.astype(np.float32).reshape(channels, 1, 1, 1))
        offset = graph.add_constant(f"{name}.bias", shift.astype(np.float32))
        replace(graph, node, "Conv", [node.inputs[0], weights, offset], ConvAttrs((1, 1), groups=channels))
