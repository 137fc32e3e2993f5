"""Normalization: softmax and its logarithm, batch, layer, RMS, group and local response normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
    FLOAT_ONLY,
    Call,
    PruneRule,
    QuantRule,
    Trait,
    elements,
    register,
    require,
    require_axis,
    require_real,
)
from bevel.ir.types import F32, TensorType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AxisAttrs:
    """The normalized axis, counted from the front."""

    axis: int


@dataclass(frozen=True)
class BatchNormAttrs:
    """Added to the variance before the square root."""

    epsilon: float = 1e-5


@dataclass(frozen=True)
class ReduceAttrs:
    """Reduced axes, sorted, counted from the front; whether they stay with extent 1."""

    axes: tuple[int, ...]
    keepdims: bool = True


@dataclass(frozen=True)
class RmsNormAttrs:
    """First normalized axis, counted from the front; what is added before the square root."""

    axis: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LayerNormAttrs(RmsNormAttrs):
    """Whether mean and 1 / sqrt(variance + epsilon) are results too."""

    statistics: bool = False


@dataclass(frozen=True)
class GroupNormAttrs:
    """Groups that the channels are split into, in order; what is added to their variance."""

    groups: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LrnAttrs:
    """Channels of a window, and the constants of (bias + alpha / size * sum of squares)^beta."""

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0


def softmax_infer(attrs: AxisAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """The operand's shape."""
    require_real(*ins)
    require_axis(attrs.axis, ins[0].rank)
    return (ins[0].with_elem(F32),)


def _softmax_reference(call: Call, x: Array) -> Array:
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=call.attrs.axis, keepdims=True))
    return np.asarray(e / e.sum(axis=call.attrs.axis, keepdims=True)).astype(x.dtype)


def _bn_infer(_attrs: BatchNormAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    x = ins[0]
    require(x.rank >= 2, f"expected [N,C,...], found rank {x.rank}")
    for t, what in zip(ins[1:], ("scale", "bias", "mean", "variance"), strict=True):
        require(t.shape == (x.shape[1],), f"{what} is {list(map(str, t.shape))}, expected [{x.shape[1]}]")
    return (x.with_elem(F32),)


def _bn_reference(call: Call, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + call.attrs.epsilon)
    shape = (1, -1, *([1] * (x.ndim - 2)))
    return np.asarray(x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)).astype(x.dtype)


def _reduced_elements(_attrs: Any, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    return elements(ins)


def _log_softmax_reference(call: Call, x: Array) -> Array:
    wide = x.astype(np.float64)
    shifted = wide - wide.max(axis=call.attrs.axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=call.attrs.axis, keepdims=True))).astype(x.dtype)


def _normalized_axes(attrs: LayerNormAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    x = ins[0]
    require_axis(attrs.axis, x.rank)
    for t, what in zip(ins[1:], ("scale", "bias"), strict=False):
        wanted = list(map(str, x.shape[attrs.axis :]))
        require(t.shape == x.shape[attrs.axis :], f"{what} is {list(map(str, t.shape))}, expected {wanted}")
    return (x.with_elem(F32),)


def _layer_norm_infer(attrs: LayerNormAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    result = _normalized_axes(attrs, ins)
    kept = TensorType(tuple(1 if i >= attrs.axis else d for i, d in enumerate(ins[0].shape)), F32)
    return (*result, kept, kept) if attrs.statistics else result


def _layer_norm_reference(call: Call, x: Array, scale: Array | None = None, bias: Array | None = None) -> tuple[Array, ...]:
    axes, wide = tuple(range(call.attrs.axis, x.ndim)), x.astype(np.float64)
    mean = wide.mean(axis=axes, keepdims=True)
    centered = wide - mean
    inverse = 1.0 / np.sqrt((centered * centered).mean(axis=axes, keepdims=True) + call.attrs.epsilon)
    y = centered * inverse * (1.0 if scale is None else scale) + (0.0 if bias is None else bias)
    results = (y, mean, inverse) if call.attrs.statistics else (y,)
    return tuple(np.asarray(r).astype(x.dtype) for r in results)


def _rms_norm_reference(call: Call, x: Array, scale: Array | None = None) -> Array:
    axes, wide = tuple(range(call.attrs.axis, x.ndim)), x.astype(np.float64)
    root = np.sqrt((wide * wide).mean(axis=axes, keepdims=True) + call.attrs.epsilon)
    return np.asarray(wide / root * (1.0 if scale is None else scale)).astype(x.dtype)


def _group_norm_infer(attrs: GroupNormAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    x = ins[0]
    require(x.rank >= 2, f"expected [N,C,...], found rank {x.rank}")
    channels = x.shape[1]
    divides = isinstance(channels, int) and attrs.groups >= 1 and channels % attrs.groups == 0
    require(divides, f"{channels} channels in {attrs.groups} groups")
    for t, what in zip(ins[1:], ("scale", "bias"), strict=True):
        require(t.shape == (channels,), f"{what} is {list(map(str, t.shape))}, expected [{channels}]")
    return (x.with_elem(F32),)


def _group_norm_reference(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    groups = x.astype(np.float64).reshape(x.shape[0], call.attrs.groups, -1)
    centered = groups - groups.mean(axis=2, keepdims=True)
    y = centered / np.sqrt((centered * centered).mean(axis=2, keepdims=True) + call.attrs.epsilon)
    channels = (1, -1, *([1] * (x.ndim - 2)))
    return np.asarray(y.reshape(x.shape) * scale.reshape(channels) + bias.reshape(channels)).astype(x.dtype)


def _lrn_infer(attrs: LrnAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    require(ins[0].rank >= 2, f"expected [N,C,...], found rank {ins[0].rank}")
    require(attrs.size >= 1, f"size {attrs.size}, expected at least 1")
    return (ins[0].with_elem(F32),)


def lrn_reach(size: int) -> tuple[int, int]:
    """Channels before and after its own that a window of `size` channels spans."""
    return (size - 1) // 2, size // 2


def _lrn_reference(call: Call, x: Array) -> Array:
    at, wide = call.attrs, x.astype(np.float64)
    border = [(0, 0)] * x.ndim
    border[1] = lrn_reach(at.size)
    squares = np.lib.stride_tricks.sliding_window_view(np.pad(wide * wide, border), at.size, axis=1).sum(axis=-1)
    return np.asarray(wide / (at.bias + at.alpha / at.size * squares) ** at.beta).astype(x.dtype)


register(
    "Softmax",
    "exp(x - max) / sum along an axis.",
    attrs=AxisAttrs,
    arity=(1, 1),
    infer=softmax_infer,
    reference=_softmax_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    quant=QuantRule.FIXED,
    integer="IntSoftmax",
    prune=PruneRule.BLOCKS,
)
register(
    "BatchNormalization",
    "x normalized per channel with stored statistics; folded into convolutions before code generation.",
    attrs=BatchNormAttrs,
    arity=(5, 5),
    infer=_bn_infer,
    reference=_bn_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    traits={Trait.CHANNELWISE},
    quant=QuantRule.OWN,
    integer="ChannelLut",
    prune=PruneRule.CARRIES,
)
register(
    "LogSoftmax",
    "x - max - log(sum of exp(x - max)) along an axis.",
    attrs=AxisAttrs,
    arity=(1, 1),
    infer=softmax_infer,
    reference=_log_softmax_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
register(
    "LayerNormalization",
    "(x - mean) / sqrt(variance + epsilon) over the axes from one on, times scale, plus bias (Ba et al., 2016).",
    attrs=LayerNormAttrs,
    arity=(1, 3),
    infer=_layer_norm_infer,
    reference=_layer_norm_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
register(
    "RMSNormalization",
    "x / sqrt(mean of squares + epsilon) over the axes from one on, times scale (Zhang and Sennrich, 2019).",
    attrs=RmsNormAttrs,
    arity=(1, 2),
    infer=_normalized_axes,
    reference=_rms_norm_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
register(
    "GroupNormalization",
    "[N,C,...] normalized over each group of channels, times scale, plus bias, per channel (Wu and He, 2018).",
    attrs=GroupNormAttrs,
    arity=(3, 3),
    infer=_group_norm_infer,
    reference=_group_norm_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
register(
    "LRN",
    "[N,C,...] divided by (bias + alpha * mean square of the neighbouring channels)^beta (Krizhevsky et al., 2012).",
    attrs=LrnAttrs,
    arity=(1, 1),
    infer=_lrn_infer,
    reference=_lrn_reference,
    macs=lambda attrs, ins, _outs: attrs.size * elements(ins),
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer=None,
    prune=PruneRule.BLOCKS,
)
