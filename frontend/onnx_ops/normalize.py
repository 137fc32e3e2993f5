"""Softmax, batch normalization and mean reductions."""

from __future__ import annotations

from math import prod

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.ir.ops.normalize import AxisAttrs, BatchNormAttrs, ReduceAttrs


def convert_softmax(_builder: Builder, node: OnnxNode) -> Operand:
    """Softmax along one axis; before opset 13 it spanned all axes from `axis` on, which must then be one."""
    shape = node.shape(0)
    axis = node.axis(node.integer("axis", -1 if node.opset >= 13 else 1), len(shape))
    if node.opset < 13 and prod(node.static(shape[axis + 1 :], "axes behind the softmax axis")) != 1:
        node.refuse(f"axis={axis} of rank {len(shape)} before opset 13", "the last axis")
    return node.emit("Softmax", [node.operand(0)], AxisAttrs(axis))


def convert_batch_normalization(_builder: Builder, node: OnnxNode) -> Operand:
    """BatchNormalization with stored statistics."""
    node.number("momentum", 0.9)
    if node.integer("training_mode", 0) or any(node.outputs[1:]):
        node.refuse("training mode", "inference with stored statistics; export the model in eval mode")
    return node.emit("BatchNormalization", node.operands(), BatchNormAttrs(node.number("epsilon", 1e-5)))


def convert_reduce_mean(_builder: Builder, node: OnnxNode) -> Operand:
    """ReduceMean over constant axes (attribute before opset 18, operand since)."""
    rank = len(node.shape(0))
    axes = node.ints_or_input("axes", 1)
    keepdims = bool(node.integer("keepdims", 1))
    if not axes:
        if node.integer("noop_with_empty_axes", 0):
            return node.operand(0)
        axes = tuple(range(rank))
    node.integer("noop_with_empty_axes", 0)
    return node.emit("ReduceMean", [node.operand(0)], ReduceAttrs(tuple(sorted({node.axis(a, rank) for a in axes})), keepdims))


TABLE = {
    "Softmax": convert_softmax,
    "BatchNormalization": convert_batch_normalization,
    "ReduceMean": convert_reduce_mean,
}
