"""Average pooling to IntAveragePool: one dyadic factor for each number of elements a window can hold."""

from __future__ import annotations

import numpy as np

from bevel.ir.graph import Node
from bevel.ir.ops.integer import IntAveragePoolAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, window_counts
from bevel.passes.quantize.dyadic import dyadic, exact
from bevel.passes.quantize.lowering import Epilogue, Lowering, lowers, quant


@lowers("AveragePool", "GlobalAveragePool")
def lower_average(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """AveragePool(x) -> IntAveragePool; the global one is a window over the whole plane."""
    source = node.inputs[0]
    height, width = (int(d) for d in source.type.shape[2:] if isinstance(d, int))
    at = node.attrs if isinstance(node.attrs, AveragePoolAttrs) else AveragePoolAttrs((height, width), (height, width))
    counts = tuple(int(c) for c in np.unique(window_counts(at, height, width)))
    ratio = exact(quant(source).scale[0]) / exact(end.out.scale[0])
    m, n = zip(*(dyadic(ratio / c) for c in counts), strict=True)
    attrs = IntAveragePoolAttrs(at.kernel, at.strides, at.pads, at.dilations, end.out, counts, m, n, end.lo, end.hi)
    ctx.finish(end.value, "IntAveragePool", [ctx.operand(source)], attrs, node.loc)
