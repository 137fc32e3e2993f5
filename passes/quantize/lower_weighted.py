"""Conv and Gemm to IntConv / IntGemm with Requantize: biases at the accumulator's scale, dyadic factors, the overflow proof."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UnsupportedModel
from bevel.ir.graph import Node, Value
from bevel.ir.ops.integer import RequantizeAttrs
from bevel.ir.types import Codebook, Quant, multiplied_integers
from bevel.passes.quantize.dyadic import channel_factors, exact
from bevel.passes.quantize.lowering import AT_LEAST_ZERO, Epilogue, Lowering, clamp_bounds, is_code, lowers, quant

Array = npt.NDArray[Any]


def accumulator_scales(x: Quant, w: Quant | Codebook, channels: int) -> list[Fraction]:
    """Exact s_x * s_w of each output channel; weights that share theirs repeat it."""
    repeats = channels if w.per_tensor else w.block if isinstance(w, Quant) and w.block is not None else 1
    scales = [s for s in w.scale for _ in range(repeats)]
    return [exact(x.scale[0]) * exact(s) for s in scales[:channels]]


def bias_codes(bias: Value | None, scales: list[Fraction], layer: str, rounding: Callable[[Fraction], int] = round) -> Array:
    """int64 bias at the accumulator scales: the exact quotient, rounded, from reals or from codes of any scale.

    Raises:
        UnsupportedModel: the bias is not finite.
    """
    if bias is None:
        return np.zeros(len(scales), np.int64)
    if isinstance(bias.type.elem, Quant):
        elem = bias.type.elem
        units = [exact(s) for s in (elem.scale * len(scales) if elem.per_tensor else elem.scale)]
        zeros = elem.zero_point * len(scales) if len(elem.zero_point) == 1 else elem.zero_point
        reals = [u * (int(q) - z) for u, q, z in zip(units, bias.array, zeros, strict=True)]
    else:
        if not np.isfinite(bias.array).all():
            raise UnsupportedModel(f"layer {layer!r}: bias {bias.name!r} holds NaN or infinity; repair the model")
        reals = [exact(float(b)) for b in bias.array]
    return np.asarray([rounding(r / s) for r, s in zip(reals, scales, strict=True)], dtype=object)


def _proved(acc: Array, bias: Array, w: Array, x: Quant, layer: str) -> tuple[Array, list[int]]:
    """`bias` as int32 and the bound sum|w| * max|x - z| + |bias| of every output channel, once it is below 2^31."""
    reach = max(x.storage.max - x.zero_point[0], x.zero_point[0] - x.storage.min)
    bounds = [int(a) * reach + abs(int(b)) for a, b in zip(acc, bias, strict=True)]
    worst = max(bounds)
    if worst >= 1 << 31:
        raise UnsupportedModel(
            f"layer {layer!r}: accumulators can reach {worst}, int32 holds {(1 << 31) - 1} (reduction of {w[0].size}, inputs up "
            f"to {reach}, largest bias {max(abs(int(b)) for b in bias)}); keep this layer at fp32 in the plan, or recalibrate"
        )
    return bias.astype(np.int32), bounds


def _fits(node: Node) -> bool:
    weight = node.inputs[1].type.elem
    narrow = isinstance(weight, Codebook) or (isinstance(weight, Quant) and weight.storage.bits <= 8)
    return is_code(node.inputs[0]) and narrow and all(v.is_constant for v in node.inputs[1:])


def _weights(weight: Value, layer: str) -> Quant | Codebook:
    """The type of weights that integers can be multiplied with; see `lower_weighted`."""
    w = weight.type.elem
    assert isinstance(w, Quant | Codebook)
    if isinstance(w, Codebook) and w.integers is None:
        raise UnsupportedModel(
            f"layer {layer!r}: weights {weight.name!r} have type {w}, expected a table of integers of -128..127 (the scale makes "
            "reals of them); multiply the table and round it"
        )
    if isinstance(w, Quant) and any(w.zero_point):
        raise UnsupportedModel(
            f"layer {layer!r}: weights {weight.name!r} have type {w}, expected symmetric ones, zero point 0; re-export with "
            "symmetric weights"
        )
    if w.axis not in (None, 0):
        raise UnsupportedModel(
            f"layer {layer!r}: weights {weight.name!r} have type {w}; integer sums need one scale for all weights of an output "
            "channel: one per tensor, per output channel or per block of output channels; re-export without groups of inputs"
        )
    return w


@lowers("Conv", "Gemm", fits=_fits)
def lower_weighted(ctx: Lowering, node: Node, end: Epilogue) -> None:
    """Conv(x, w, b) -> Requantize(IntConv(x, w, b'), m, n), Gemm likewise; Relu and Clip behind them become the clamp.

    Signs of sums are exact: they do not depend on the scale, and the bias is rounded down.

    Raises:
        UnsupportedModel: asymmetric weights, scales that differ within an output channel, a table of other numbers than
            integers, or accumulators that could overflow.
    """
    data, weight = node.inputs[0], node.inputs[1]
    layer = end.value.name
    x, w = quant(data), _weights(weight, layer)
    channels = weight.array.shape[0]
    scales = accumulator_scales(x, w, channels)
    is_sign = end.value in ctx.signs
    # A whole number and the bias are at least 0 together where that number and the bias rounded down are.
    bias = bias_codes(node.inputs[2] if len(node.inputs) == 3 else None, scales, layer, math.floor if is_sign else round)
    integers = multiplied_integers(w, weight.array)
    magnitude = np.abs(integers.reshape(channels, -1).astype(np.int64)).sum(axis=1)
    proved, reach = _proved(magnitude, bias, weight.array, x, layer)
    bias32 = ctx.constant(f"{layer}.bias", proved)
    op = "IntConv" if node.op == "Conv" else "IntGemm"
    acc = ctx.emit(op, [ctx.operand(data), ctx.operand(weight), bias32], node.attrs, f"{layer}.acc", node.loc)
    factors = channel_factors([Fraction(1) if is_sign else s / exact(end.out.scale[0]) for s in scales], reach)
    m = ctx.constant(f"{layer}.m", np.asarray([f[0] for f in factors], np.int32))
    n = ctx.constant(f"{layer}.n", np.asarray([f[1] for f in factors], np.int32))
    axis = 1 if node.op == "Conv" else acc.type.rank - 1
    if is_sign:
        if not all(lo < 0 <= hi for lo, hi in map(clamp_bounds, end.fused)):
            raise UnsupportedModel(f"layer {layer!r}: an activation before its sign leaves one sign only; remove the layer")
        attrs = RequantizeAttrs(AT_LEAST_ZERO, axis, 0, 1)
        positive = ctx.emit("Requantize", [acc, m, n], attrs, f"{layer}.positive", node.loc)
        ctx.finish_sign(end.value, positive, node.loc)
        return
    ctx.finish(end.value, "Requantize", [acc, m, n], RequantizeAttrs(end.out, axis, end.lo, end.hi), node.loc)
