"""Conv, ConvTranspose, Gemm and MatMul: weights become [O,I,KH,KW] and [N,K], paddings explicit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand, normalize_array
from bevel.frontend.onnx_ops.window import (
    as_images,
    before_squeeze,
    explicit_pads,
    from_images,
    pair,
    raised,
    read_window,
    spatial_rank,
    split_same,
)
from bevel.ir.graph import Value
from bevel.ir.ops.convolution import ConvAttrs, ConvTransposeAttrs
from bevel.ir.ops.movement import ReshapeAttrs, TransposeAttrs
from bevel.ir.types import Dim, Shape

Array = npt.NDArray[Any]


def known_weight(operand: Operand) -> bool:
    """True for a weight known at import: an array, or a constant holding quantized codes."""
    return isinstance(operand, np.ndarray) or (isinstance(operand, Value) and operand.is_constant)


def _kernel(node: OnnxNode) -> tuple[int, ...]:
    """Kernel extents of operand 1, which an attribute may repeat."""
    shape = node.shape(1)
    if len(shape) != len(node.shape(0)):
        node.refuse(f"input of rank {len(node.shape(0))}, weights of rank {len(shape)}", "equal ranks")
    kernel = node.static(shape[2:], "kernel")
    declared = node.ints("kernel_shape")
    if declared is not None and declared != kernel:
        node.refuse(f"kernel_shape={list(declared)} with weights {list(map(str, shape))}", "the extents of the weights")
    return kernel


def convert_conv(_builder: Builder, node: OnnxNode) -> Operand:
    """Conv in one or two spatial dimensions."""
    rank = spatial_rank(node)
    window = read_window(node, _kernel(node))
    attrs = ConvAttrs(window.kernel, window.strides, window.pads, window.dilations, node.integer("group", 1))
    bias = node.optional(2)
    if any(isinstance(d, Dim) for d in node.shape(0)[2:]) and _is_pointwise(attrs) and isinstance(node.operand(1), np.ndarray):
        return _pointwise(node, rank)
    operands = [as_images(node, node.operand(0)), as_images(node, node.operand(1), ".kernel")]
    result = node.emit("Conv", operands if bias is None else [*operands, bias], attrs, suffix=before_squeeze(rank))
    return from_images(node, result, rank)


def _is_pointwise(at: ConvAttrs) -> bool:
    """True where every result element depends on one pixel."""
    return at == ConvAttrs((1, 1), dilations=at.dilations)


def _pointwise(node: OnnxNode, rank: int) -> Operand:
    """A 1x1 convolution as a product over channels, whose other extents may be symbolic."""
    w, bias = node.operand(1), node.optional(2)
    assert isinstance(w, np.ndarray)
    axes = tuple(range(2, 2 + rank))
    rows = node.emit("Transpose", [node.operand(0)], TransposeAttrs((0, *axes, 1)), suffix=".rows")
    weights = w.reshape(w.shape[:2])
    product = node.emit("Gemm", [rows, weights] if bias is None else [rows, weights, bias], suffix=".product")
    return node.emit("Transpose", [product], TransposeAttrs((0, 1 + rank, *(a - 1 for a in axes))))


def convert_conv_transpose(_builder: Builder, node: OnnxNode) -> Operand:
    """ConvTranspose in one or two spatial dimensions; the border is what the declared output size leaves."""
    rank = spatial_rank(node)
    kernel = (1, *_kernel(node))[-2:]
    strides, dilations = pair(node, "strides", rank), pair(node, "dilations", rank)
    extra = pair(node, "output_padding", rank, 0, least=0)
    pads, auto, wanted = explicit_pads(node, rank), node.text("auto_pad", "NOTSET"), node.ints("output_shape")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        node.refuse(f"auto_pad={auto!r}", "NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    if auto == "VALID":
        pads = (0, 0, 0, 0)
    if wanted is not None or auto.startswith("SAME"):
        extents = node.static(raised(node.shape(0))[2:], "spatial extents")
        target = (1, *wanted)[-2:] if wanted is not None else tuple(e * s for e, s in zip(extents, strides, strict=True))
        if wanted is not None and len(wanted) != rank:
            node.refuse(f"output_shape={list(wanted)}", f"{rank} spatial extents")
        full = [strides[i] * (extents[i] - 1) + dilations[i] * (kernel[i] - 1) + 1 + extra[i] for i in (0, 1)]
        (top, bottom), (left, right) = (split_same(max(full[i] - target[i], 0), upper=auto == "SAME_UPPER") for i in (0, 1))
        pads = top, left, bottom, right
        # What lies beyond all windows extends the result like output_padding.
        extra = extra[0] + max(target[0] - full[0], 0), extra[1] + max(target[1] - full[1], 0)
    attrs = ConvTransposeAttrs((kernel[0], kernel[1]), strides, pads, dilations, node.integer("group", 1), extra)
    bias = node.optional(2)
    operands = [as_images(node, node.operand(0)), as_images(node, node.operand(1), ".kernel")]
    result = node.emit("ConvTranspose", operands if bias is None else [*operands, bias], attrs, suffix=before_squeeze(rank))
    return from_images(node, result, rank)


def transpose_last(node: OnnxNode, operand: Operand, suffix: str) -> Operand:
    """Swap the last two axes."""
    if isinstance(operand, np.ndarray):
        return operand.swapaxes(-1, -2)
    value = operand.value if isinstance(operand, Codes) else operand
    rank = value.type.rank
    return node.emit("Transpose", [operand], TransposeAttrs((*range(rank - 2), rank - 1, rank - 2)), suffix=suffix)


def _scaled(node: OnnxNode, operand: Operand, factor: float, what: str) -> Operand:
    """An operand times alpha or beta."""
    if factor == 1.0:
        return operand
    if isinstance(operand, np.ndarray):
        return normalize_array(operand * np.float32(factor), f"{node.outputs[0]}.{what}")
    if isinstance(operand, Codes):
        node.refuse(f"{what}={factor} on integers", f"{what}=1")
    return node.emit("Mul", [operand, np.array(factor, np.float32)], suffix=f".{what}")


def convert_gemm(_builder: Builder, node: OnnxNode) -> Operand:
    """Gemm: alpha * A' * B' + beta * C; a factor that no constant takes up becomes a product."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    a, b, c = node.operand(0), node.operand(1), node.optional(2)
    if node.integer("transA", 0):
        a = transpose_last(node, a, ".a")
    transposed = bool(node.integer("transB", 0))
    if c is not None:
        c = _scaled(node, c, beta, "beta")
    last = "" if c is None else ".product"
    if not known_weight(b):
        right = transpose_last(node, b, ".b") if transposed else b
        product = node.emit("MatMul", [_scaled(node, a, alpha, "alpha"), right], suffix=last)
        return product if c is None else node.emit("Add", [product, c])
    weights = b if transposed else transpose_last(node, b, ".weight")
    if isinstance(weights, np.ndarray):
        weights = _scaled(node, weights, alpha, "alpha")
    else:
        a = _scaled(node, a, alpha, "alpha")
    if c is None:
        return node.emit("Gemm", [a, weights])
    (columns,) = node.static(node.shape(1)[:1] if transposed else node.shape(1)[1:], "weights")
    if isinstance(c, np.ndarray) and c.shape in ((), (1,), (1, 1), (columns,), (1, columns)):
        return node.emit("Gemm", [a, weights, np.broadcast_to(c.reshape(-1), (columns,))])
    if isinstance(c, Value) and c.is_constant and c.type.shape == (columns,):
        return node.emit("Gemm", [a, weights, c])
    return node.emit("Add", [node.emit("Gemm", [a, weights], suffix=last), c])


def _reshaped(node: OnnxNode, operand: Operand, shape: Shape, suffix: str) -> Operand:
    """`operand` with another shape of as many elements."""
    if isinstance(operand, np.ndarray):
        return operand.reshape([d for d in shape if isinstance(d, int)])
    return node.emit("Reshape", [operand], ReshapeAttrs(shape), suffix=suffix)


def convert_matmul(_builder: Builder, node: OnnxNode) -> Operand:
    """MatMul: vectors become matrices for its sake, and products with a constant matrix are Gemms."""
    a, b = node.operand(0), node.operand(1)
    left, right = node.shape(0), node.shape(1)
    if not left or not right:
        node.refuse(f"operands of rank {len(left)} and {len(right)}", "operands of rank 1 and more")
    row, column = len(left) == 1, len(right) == 1
    if row:
        a, left = _reshaped(node, a, (1, *left), ".row"), (1, *left)
    if column:
        b, right = _reshaped(node, b, (*right, 1), ".column"), (*right, 1)
    if not (row or column):
        return _product(node, a, b, left, right, "")
    result = _product(node, a, b, left, right, ".matrix")
    if isinstance(result, np.ndarray):
        return result.reshape([d for d, unit in zip(result.shape, _units(result.ndim, row, column), strict=True) if not unit])
    value = result.value if isinstance(result, Codes) else result
    units = _units(value.type.rank, row, column)
    return _reshaped(node, result, tuple(d for d, unit in zip(value.type.shape, units, strict=True) if not unit), "")


def _units(rank: int, row: bool, column: bool) -> list[bool]:
    """Which axes of a product of `rank` axes vectors brought along."""
    return [*[False] * (rank - 2), row, column]


def _product(node: OnnxNode, a: Operand, b: Operand, left: Shape, right: Shape, suffix: str) -> Operand:
    """The product of matrices, or stacks of them."""
    if isinstance(b, np.ndarray) and not known_weight(a) and len(right) <= len(left) and all(d == 1 for d in right[:-2]):
        b, right = b.reshape(b.shape[-2:]), right[-2:]
    if known_weight(b) and len(right) == 2 and not known_weight(a):
        return node.emit("Gemm", [a, transpose_last(node, b, ".weight")], suffix=suffix)
    if isinstance(a, np.ndarray) and not known_weight(b) and len(right) >= len(left) and all(d == 1 for d in left[:-2]):
        # a b = (b' a')': the constant is the weight of a Gemm.
        columns = node.emit("Gemm", [transpose_last(node, b, ".columns"), a.reshape(a.shape[-2:])], suffix=".columns.product")
        return transpose_last(node, columns, suffix)
    return node.emit("MatMul", [a, b], suffix=suffix)


TABLE = {
    "Conv": convert_conv,
    "ConvTranspose": convert_conv_transpose,
    "Gemm": convert_gemm,
    "MatMul": convert_matmul,
}
