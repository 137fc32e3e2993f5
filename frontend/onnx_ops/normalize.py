"""Softmax and its relatives, batch, layer, RMS, group, instance, Lp, mean-variance and local response normalization."""

from __future__ import annotations

from math import prod

import numpy as np

from bevel.frontend.builder import Builder, OnnxNode, Operand
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.movement import ConcatAttrs, ReshapeAttrs
from bevel.ir.ops.normalize import (
    AxisAttrs,
    BatchNormAttrs,
    GroupNormAttrs,
    LayerNormAttrs,
    LrnAttrs,
    ReduceAttrs,
    RmsNormAttrs,
)
from bevel.ir.types import Dim, Shape

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def convert_softmax(_builder: Builder, node: OnnxNode) -> Operand:
    """Softmax, LogSoftmax and Hardmax along one axis; before opset 13 over all axes from `axis` on, as one."""
    shape, x = node.shape(0), node.operand(0)
    if not shape:
        node.refuse("a scalar operand", "operands of rank 1 or more")
    axis = node.axis(node.integer("axis", -1 if node.opset >= 13 else 1), len(shape))
    if node.opset >= 13 or all(d == 1 for d in shape[axis + 1 :]):
        return node.emit(node.op, [x], AxisAttrs(axis))
    flat = (*shape[:axis], prod(node.static(shape[axis:], "axes from the softmax axis on")))
    rows = node.emit("Reshape", [x], ReshapeAttrs(flat), suffix=".rows")
    result = node.emit(node.op, [rows], AxisAttrs(axis), suffix=".flat")
    return node.emit("Reshape", [result], ReshapeAttrs(shape))


def convert_batch_normalization(_builder: Builder, node: OnnxNode) -> Operand:
    """BatchNormalization with stored statistics."""
    node.number("momentum", 0.9)
    if node.integer("training_mode", 0) or any(node.outputs[1:]):
        node.refuse("training mode", "inference with stored statistics; export the model in eval mode")
    return node.emit("BatchNormalization", node.operands(), BatchNormAttrs(node.number("epsilon", 1e-5)))


def _require_float32(node: OnnxNode) -> None:
    stash = node.integer("stash_type", 1)
    if stash != 1:
        node.refuse(f"stash_type={stash}", "stash_type 1, statistics in float32")


def _along_rows(node: OnnxNode, index: int, normalized: Shape) -> Operand | None:
    """Operand `index` over exactly the normalized axes, None where it only broadcasts with the result."""
    operand, shape = node.operand(index), node.shape(index)
    if shape == normalized:
        return operand
    if not isinstance(operand, np.ndarray) or len(shape) > len(normalized) or any(isinstance(d, Dim) for d in normalized):
        return None
    wanted = node.static(normalized, "normalized axes")
    aligned = zip(reversed(operand.shape), reversed(wanted), strict=False)
    return np.ascontiguousarray(np.broadcast_to(operand, wanted)) if all(a in (1, b) for a, b in aligned) else None


def convert_layer_normalization(_builder: Builder, node: OnnxNode) -> Operand | tuple[Operand, ...]:
    """LayerNormalization and its simplified form, RMSNormalization; scale and bias may broadcast with the result."""
    shape = node.shape(0)
    if not shape:
        node.refuse("a scalar operand", "operands of rank 1 or more")
    _require_float32(node)
    axis, epsilon = node.axis(node.integer("axis", -1), len(shape)), node.number("epsilon", 1e-5)
    centered = node.op == "LayerNormalization"
    statistics = any(node.outputs[1:])
    if statistics and not centered:
        node.refuse("the InvStdVar output", "the normalized values only")
    present = [i for i in (1, 2) if node.optional(i) is not None]
    fused: list[Operand] = []
    for i in present if centered else present[:1]:
        if i != len(fused) + 1 or (operand := _along_rows(node, i, shape[axis:])) is None:
            break
        fused.append(operand)
    op = "LayerNormalization" if centered else "RMSNormalization"
    if statistics:
        if len(fused) < len(present):
            node.refuse("mean and deviation as outputs with a broadcast scale or bias", "scale and bias over the normalized axes")
        return node.emit_all(op, [node.operand(0), *fused], LayerNormAttrs(axis, epsilon, statistics=True), results=3)
    rest = present[len(fused) :]
    if any(len(node.shape(i)) > len(shape) for i in rest):
        node.refuse("a scale or bias of higher rank than the operand", "scale and bias that broadcast to the operand")
    attrs = LayerNormAttrs(axis, epsilon) if centered else RmsNormAttrs(axis, epsilon)
    result = node.emit(op, [node.operand(0), *fused], attrs, suffix=".normalized" if rest else "")
    for i in rest:
        result = node.emit("Mul" if i == 1 else "Add", [result, node.operand(i)], suffix="" if i == rest[-1] else ".scaled")
    return result


def _per_channel(node: OnnxNode, index: int, channels: int, what: str) -> Operand:
    """Scale or bias with one entry per channel, repeated where the node has one per group."""
    operand, shape = node.operand(index), node.static(node.shape(index), what)
    if shape == (channels,):
        return operand
    if len(shape) != 1 or not shape[0] or channels % shape[0]:
        node.refuse(f"{what} of shape {list(shape)} for {channels} channels", "one entry per channel or group")
    times = channels // shape[0]
    if isinstance(operand, np.ndarray):
        return np.repeat(operand, times)
    column = node.emit("Reshape", [operand], ReshapeAttrs((shape[0], 1)), suffix=f".{what}.column")
    repeated = node.emit("Concat", [column] * times, ConcatAttrs(1), suffix=f".{what}.repeated")
    return node.emit("Reshape", [repeated], ReshapeAttrs((channels,)), suffix=f".{what}")


def convert_group_normalization(_builder: Builder, node: OnnxNode) -> Operand:
    """GroupNormalization, whose scale and bias are per group before opset 21; InstanceNormalization has one channel a group."""
    shape = node.shape(0)
    if len(shape) < 2:
        node.refuse(f"input of rank {len(shape)}", "[N,C,...]")
    (channels,) = node.static(shape[1:2], "channels")
    groups = channels
    if node.op == "GroupNormalization":
        _require_float32(node)
        groups = node.integer("num_groups", 0)
        if groups < 1 or channels % groups:
            node.refuse(f"num_groups={groups} for {channels} channels", "a divisor of the number of channels")
    scale, bias = (_per_channel(node, i, channels, what) for i, what in ((1, "scale"), (2, "bias")))
    return node.emit("GroupNormalization", [node.operand(0), scale, bias], GroupNormAttrs(groups, node.number("epsilon", 1e-5)))


def convert_lp_normalization(_builder: Builder, node: OnnxNode) -> Operand:
    """X / norm along an axis, norm of order 1 or 2; 0 where the norm is 0."""
    axis, p = node.axis(node.integer("axis", -1), len(node.shape(0))), node.integer("p", 2)
    if p not in (1, 2):
        node.refuse(f"p={p}", "p of 1 and 2")
    norm = node.emit(f"ReduceL{p}", [node.operand(0)], ReduceAttrs((axis,)), suffix=".norm")
    # 0 / tiny is the 0 that the operator gives for 0 / 0.
    positive = node.emit("Clip", [norm], ClipAttrs(lo=_SMALLEST_NORMAL), suffix=".positive")
    return node.emit("Div", [node.operand(0), positive])


def convert_mean_variance_normalization(_builder: Builder, node: OnnxNode) -> Operand:
    """(x - mean) / (deviation + 1e-9) over axes; with the mean before the variance, so that nothing cancels."""
    rank = len(node.shape(0))
    axes = tuple(sorted({node.axis(a, rank) for a in node.ints("axes") or (0, 2, 3)}))
    mean = node.emit("ReduceMean", [node.operand(0)], ReduceAttrs(axes), suffix=".mean")
    centered = node.emit("Sub", [node.operand(0), mean], suffix=".centered")
    squares = node.emit("Mul", [centered, centered], suffix=".squares")
    variance = node.emit("ReduceMean", [squares], ReduceAttrs(axes), suffix=".variance")
    deviation = node.emit("Sqrt", [variance], suffix=".deviation")
    positive = node.emit("Add", [deviation, np.asarray(1e-9, np.float32)], suffix=".positive")
    return node.emit("Div", [centered, positive])


def convert_lrn(_builder: Builder, node: OnnxNode) -> Operand:
    """LRN across channels."""
    attrs = LrnAttrs(node.integer("size", 0), node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0))
    return node.emit("LRN", [node.operand(0)], attrs)


TABLE = {
    "Softmax": convert_softmax,
    "LogSoftmax": convert_softmax,
    "Hardmax": convert_softmax,
    "BatchNormalization": convert_batch_normalization,
    "LayerNormalization": convert_layer_normalization,
    "SimplifiedLayerNormalization": convert_layer_normalization,
    "RMSNormalization": convert_layer_normalization,
    "GroupNormalization": convert_group_normalization,
    "InstanceNormalization": convert_group_normalization,
    "LpNormalization": convert_lp_normalization,
    "MeanVarianceNormalization": convert_mean_variance_normalization,
    "LRN": convert_lrn,
}
