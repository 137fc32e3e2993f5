"""ONNX operators by family: each file has a TABLE from operator type to converter.

A converter takes the builder and the node and returns the operand (or operands) that the node's results stand for.
"""

from __future__ import annotations

from collections.abc import Callable

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.frontend.onnx_ops import (
    constants,
    convolution,
    einsum,
    elementwise,
    index,
    logic,
    movement,
    nms,
    normalize,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
)

Converter = Callable[[Builder, OnnxNode], Operand | tuple[Operand, ...]]

CONVERTERS: dict[str, Converter] = {
    **constants.TABLE,
    **convolution.TABLE,
    **einsum.TABLE,
    **elementwise.TABLE,
    **index.TABLE,
    **logic.TABLE,
    **movement.TABLE,
    **nms.TABLE,
    **normalize.TABLE,
    **pool.TABLE,
    **quantize.TABLE,
    **recurrent.TABLE,
    **reduce.TABLE,
    **resize.TABLE,
}

# Operators of other quantization styles, and the export that bevel reads instead.
HINTS: dict[str, str] = dict.fromkeys(
    ("QLinearConv", "QLinearMatMul", "QLinearAdd", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
    "quantized models in QDQ format (QuantizeLinear and DequantizeLinear around float operators)",
)
