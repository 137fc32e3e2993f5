"""Functions with constant parameters for each channel, to tables of codes."""

from __future__ import annotations

import numpy as np

from bevel.ir.graph import Node
from bevel.ir.ops import Call, Trait, lookup, table
from bevel.ir.ops.integer import ChannelLutAttrs
from bevel.ir.types import Quant, TensorType
from bevel.passes.quantize.lowering import Epilogue, Lowering, lowers, quant

CHANNELWISE_OPS = tuple(op.name for op in table() if Trait.CHANNELWISE in op.traits and op.integer == "ChannelLut")


def _fits(node: Node) -> bool:
    elem = node.inputs[0].type.elem
    small = isinstance(elem, Quant) and elem.per_tensor and elem.storage.bits <= 8
    return small and all(v.is_constant for v in node.inputs[1:]) and isinstance(node.inputs[0].type.shape[1], int)


@lowers(*CHANNELWISE_OPS, fits=_fits)
def lower_channelwise(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """f(x, parameters[c]) -> ChannelLut: the reference on every code of every channel, rounded once."""
    source = node.inputs[0]
    x, channels = quant(source), source.type.shape[1]
    assert isinstance(channels, int)
    codes = np.arange(x.storage.min, x.storage.max + 1, dtype=np.float64)
    reals = np.broadcast_to(x.scale[0] * (codes - x.zero_point[0]), (channels, codes.size))
    # One row of all codes for each channel: [1, C, codes], padded with unit axes to the operand's rank.
    shape = (1, channels, codes.size, *([1] * (source.type.rank - 3))) if source.type.rank > 2 else (codes.size, channels)
    image = reals.reshape(shape) if source.type.rank > 2 else np.ascontiguousarray(reals.T)
    parameters = [ctx.real(v).array for v in node.inputs[1:]]
    types = tuple(TensorType(a.shape, v.type.elem) for a, v in zip((image, *parameters), node.inputs, strict=True))
    with np.errstate(all="ignore"):
        y = np.asarray(lookup(node.op).reference(Call(node.attrs, types, types[:1]), image, *parameters), np.float64)
    y = y.reshape(channels, codes.size) if source.type.rank > 2 else y.T
    steps = np.rint(np.where(np.isnan(y), 0.0, y) / end.out.scale[0]) + end.out.zero_point[0]
    rows = ctx.constant(f"{end.value.name}.table", np.clip(steps, end.lo, end.hi).astype(end.out.dtype))
    ctx.finish(end.value, "ChannelLut", [ctx.operand(source), rows], ChannelLutAttrs(end.out, 1), node.loc)
