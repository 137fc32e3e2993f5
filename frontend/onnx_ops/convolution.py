"""Conv, Gemm and MatMul: weights become [O,I,KH,KW] and [N,K], paddings explicit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand, normalize_array
from bevel.frontend.onnx_ops.window import read_window
from bevel.ir.graph import Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.movement import TransposeAttrs

Array = npt.NDArray[Any]


def known_weight(operand: Operand) -> bool:
    """True for a weight known at import: an array, or a constant holding quantized codes."""
    return isinstance(operand, np.ndarray) or (isinstance(operand, Value) and operand.is_constant)


def convert_conv(_builder: Builder, node: OnnxNode) -> Operand:
    """Conv in two spatial dimensions."""
    x, w = node.operand(0), node.operand(1)
    shape = node.shape(1)
    if len(node.shape(0)) != 4 or len(shape) != 4:
        node.refuse(f"input of rank {len(node.shape(0))}, weights of rank {len(shape)}", "2-D convolution of [N,C,H,W]")
    kernel = node.static(shape[2:], "kernel")
    window = read_window(node, node.ints("kernel_shape") or kernel)
    attrs = ConvAttrs(window.kernel, window.strides, window.pads, window.dilations, node.integer("group", 1))
    if window.ceil_pads != (0, 0):
        node.refuse("ceil_mode", "floor rounding")
    bias = node.optional(2)
    return node.emit("Conv", [x, w] if bias is None else [x, w, bias], attrs)


def transpose_last(node: OnnxNode, operand: Operand, suffix: str) -> Operand:
    """Swap the last two axes."""
    if isinstance(operand, np.ndarray):
        return operand.swapaxes(-1, -2)
    value = operand.value if isinstance(operand, Codes) else operand
    rank = value.type.rank
    return node.emit("Transpose", [operand], TransposeAttrs((*range(rank - 2), rank - 1, rank - 2)), suffix=suffix)


def _scaled(node: OnnxNode, operand: Operand, factor: float, what: str) -> Operand:
    """A known operand times alpha or beta."""
    if factor == 1.0:
        return operand
    if not isinstance(operand, np.ndarray):
        node.refuse(f"{what}={factor} on an operand that is not a float constant", f"{what}=1")
    return normalize_array(operand * np.float32(factor), f"{node.outputs[0]}.{what}")


def convert_gemm(_builder: Builder, node: OnnxNode) -> Operand:
    """Gemm: alpha * A' * B' + beta * C."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    a, b, c = node.operand(0), node.operand(1), node.optional(2)
    if node.integer("transA", 0):
        a = transpose_last(node, a, ".a")
    transposed = bool(node.integer("transB", 0))
    if not known_weight(b):
        right = transpose_last(node, b, ".b") if transposed else b
        if alpha != 1.0:
            node.refuse(f"alpha={alpha} with a computed right operand", "alpha=1")
        product = node.emit("MatMul", [a, right], suffix="" if c is None else ".product")
        return product if c is None else node.emit("Add", [product, _scaled(node, c, beta, "beta")])
    weights = _scaled(node, b if transposed else transpose_last(node, b, ".weight"), alpha, "alpha")
    if c is None:
        return node.emit("Gemm", [a, weights])
    c = _scaled(node, c, beta, "beta")
    (columns,) = node.static(node.shape(1)[:1] if transposed else node.shape(1)[1:], "weights")
    if isinstance(c, np.ndarray) and c.shape in ((), (1,), (1, 1), (columns,), (1, columns)):
        return node.emit("Gemm", [a, weights, np.broadcast_to(c.reshape(-1), (columns,))])
    if isinstance(c, Value) and c.is_constant and c.type.shape == (columns,):
        return node.emit("Gemm", [a, weights, c])
    return node.emit("Add", [node.emit("Gemm", [a, weights], suffix=".product"), c])


def convert_matmul(_builder: Builder, node: OnnxNode) -> Operand:
    """MatMul; with a constant matrix on the right it is a Gemm."""
    a, b = node.operand(0), node.operand(1)
    if len(node.shape(0)) < 2 or len(node.shape(1)) < 2:
        node.refuse(f"operands of rank {len(node.shape(0))} and {len(node.shape(1))}", "matrices, or stacks of them")
    if known_weight(b) and len(node.shape(1)) == 2 and not known_weight(a):
        return node.emit("Gemm", [a, transpose_last(node, b, ".weight")])
    return node.emit("MatMul", [a, b])


TABLE = {"Conv": convert_conv, "Gemm": convert_gemm, "MatMul": convert_matmul}
