"""Pooling in two spatial dimensions."""

from __future__ import annotations

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.frontend.onnx_ops.window import read_window
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs


def _require_images(node: OnnxNode) -> None:
    if len(node.shape(0)) != 4:
        node.refuse(f"input of rank {len(node.shape(0))}", "2-D pooling of [N,C,H,W]")


def convert_max_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """MaxPool without indices; rounding up becomes border, which never holds a maximum."""
    _require_images(node)
    if len(node.outputs) > 1 and node.outputs[1]:
        node.refuse("the Indices output", "the pooled values only")
    node.integer("storage_order", 0)
    w = read_window(node, node.ints("kernel_shape") or ())
    top, left, bottom, right = w.pads
    pads = (top, left, bottom + w.ceil_pads[0], right + w.ceil_pads[1])
    return node.emit("MaxPool", [node.operand(0)], PoolAttrs(w.kernel, w.strides, pads, w.dilations))


def convert_average_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """AveragePool; rounding up becomes border as long as the border does not count."""
    _require_images(node)
    w = read_window(node, node.ints("kernel_shape") or ())
    include = bool(node.integer("count_include_pad", 0))
    if include and w.ceil_pads != (0, 0):
        node.refuse("ceil_mode=1 with count_include_pad=1", "either of them")
    top, left, bottom, right = w.pads
    pads = (top, left, bottom + w.ceil_pads[0], right + w.ceil_pads[1])
    return node.emit("AveragePool", [node.operand(0)], AveragePoolAttrs(w.kernel, w.strides, pads, w.dilations, include))


def convert_global_average_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """GlobalAveragePool."""
    _require_images(node)
    return node.emit("GlobalAveragePool", [node.operand(0)])


def convert_global_max_pool(_builder: Builder, node: OnnxNode) -> Operand:
    """GlobalMaxPool: one window over the whole image."""
    _require_images(node)
    height, width = node.static(node.shape(0)[2:], "spatial extents")
    return node.emit("MaxPool", [node.operand(0)], PoolAttrs((height, width)))


TABLE = {
    "MaxPool": convert_max_pool,
    "AveragePool": convert_average_pool,
    "GlobalAveragePool": convert_global_average_pool,
    "GlobalMaxPool": convert_global_max_pool,
}
