"""Pooling in one and two spatial dimensions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.frontend.onnx_ops.window import Window, as_images, before_squeeze, from_images, read_window, spatial_rank
from bevel.ir.ops.functions import PowerAttrs
from bevel.ir.ops.movement import PadAttrs
from bevel.ir.ops.normalize import ReduceAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, MaxPoolIndicesAttrs, PoolAttrs


def _attrs(w: Window) -> PoolAttrs:
    return PoolAttrs(w.kernel, w.strides, w.all_pads, w.dilations)


def convert_max_pool(_builder: Builder, node: OnnxNode) -> Operand | tuple[Operand, ...]:
    """MaxPool; rounding up becomes border, which never holds a maximum. Indices come from an operator of their own."""
    rank = spatial_rank(node)
    w = read_window(node, node.ints("kernel_shape") or ())
    order = node.integer("storage_order", 0)
    x = as_images(node, node.operand(0))
    if len(node.outputs) > 1 and node.outputs[1]:
        attrs = MaxPoolIndicesAttrs(w.kernel, w.strides, w.all_pads, w.dilations, column_major=bool(order) and rank == 2)
        values, indices = node.emit_all("MaxPoolIndices", [x], attrs, results=2, suffix=before_squeeze(rank))
        return from_images(node, values, rank), from_images(node, indices, rank, result=1)
    return from_images(node, node.emit("MaxPool", [x], _attrs(w), suffix=before_squeeze(rank)), rank)


def average(node: OnnxNode, x: Operand, w: Window, suffix: str, *, include_pad: bool) -> Operand:
    """The mean of each window of [N,C,H,W]; what rounding up adds never counts as elements."""
    pads = w.all_pads
    if include_pad and w.ceil_pads != (0, 0):
        # A border that counts becomes part of the image, so that the rest is a border that does not.
        top, left, bottom, right = w.pads
        x = node.emit("Pad", [x], PadAttrs((0, 0, top, left), (0, 0, bottom, right)), suffix=".padded")
        pads, include_pad = (0, 0, *w.ceil_pads), False
    return node.emit("AveragePool", [x], AveragePoolAttrs(w.kernel, w.strides, pads, w.dilations, include_pad), suffix=suffix)


def convert_average_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """AveragePool."""
    rank = spatial_rank(node)
    w = read_window(node, node.ints("kernel_shape") or ())
    include = bool(node.integer("count_include_pad", 0))
    result = average(node, as_images(node, node.operand(0)), w, before_squeeze(rank), include_pad=include)
    return from_images(node, result, rank)


def convert_lp_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """LpPool: (sum |x|^p)^(1/p) of each window, from the mean of a power."""
    rank = spatial_rank(node)
    w = read_window(node, node.ints("kernel_shape") or ())
    p = node.integer("p", 2)
    if p < 1:
        node.refuse(f"p={p}", "p of at least 1")
    x = as_images(node, node.operand(0))
    powers = node.emit("Mul", [x, x], suffix=".square") if p == 2 else node.emit("Abs", [x], suffix=".magnitude")
    if p > 2:
        powers = node.emit("Power", [powers], PowerAttrs(float(p)), suffix=".power")
    # Zeros of any border add nothing to a sum, and with a border that counts every window has as many elements.
    full = replace(w, pads=w.all_pads, ceil_pads=(0, 0))
    mean = average(node, powers, full, ".mean", include_pad=True)
    count = np.array(w.kernel[0] * w.kernel[1], np.float32)
    total = node.emit("Mul", [mean, count], suffix=before_squeeze(rank) if p == 1 else ".sum")
    if p > 1:
        op, attrs = ("Sqrt", None) if p == 2 else ("Power", PowerAttrs(float(np.float32(1 / p))))
        total = node.emit(op, [total], attrs, suffix=before_squeeze(rank))
    return from_images(node, total, rank)


def _fixed_images(node: OnnxNode) -> bool:
    """True for one or two spatial axes of known extents, which are pooled as images; others are reduced as axes."""
    shape = node.shape(0)
    if len(shape) < 3:
        node.refuse(f"input of rank {len(shape)}", "[N,C,...] with at least one spatial axis")
    return len(shape) <= 4 and all(isinstance(d, int) for d in shape[2:])


def convert_global_average_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """GlobalAveragePool."""
    if not _fixed_images(node):
        return node.emit("ReduceMean", [node.operand(0)], ReduceAttrs(tuple(range(2, len(node.shape(0))))))
    rank = spatial_rank(node)
    result = node.emit("GlobalAveragePool", [as_images(node, node.operand(0))], suffix=before_squeeze(rank))
    return from_images(node, result, rank)


def convert_global_max_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """GlobalMaxPool: one window over the whole image."""
    if not _fixed_images(node):
        return node.emit("ReduceMax", [node.operand(0)], ReduceAttrs(tuple(range(2, len(node.shape(0))))))
    rank = spatial_rank(node)
    x = as_images(node, node.operand(0))
    height, width = node.static((1, *node.shape(0)[2:])[-2:], "spatial extents")
    return from_images(node, node.emit("MaxPool", [x], PoolAttrs((height, width)), suffix=before_squeeze(rank)), rank)


TABLE = {
    "MaxPool": convert_max_pool,
    "AveragePool": convert_average_pool,
    "LpPool": convert_lp_pool,
    "GlobalAveragePool": convert_global_average_pool,
    "GlobalMaxPool": convert_global_max_pool,
}
