"""Normalization: softmax, batch normalization, reductions."""

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


def _reduce_infer(attrs: ReduceAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(*ins)
    x = ins[0]
    for axis in attrs.axes:
        require_axis(axis, x.rank)
    require(sorted(set(attrs.axes)) == list(attrs.axes), f"axes {attrs.axes} must be sorted and distinct")
    kept = [1 if i in attrs.axes else d for i, d in enumerate(x.shape)]
    shape = kept if attrs.keepdims else [d for i, d in enumerate(x.shape) if i not in attrs.axes]
    return (TensorType(tuple(shape), F32),)


def _reduced_elements(_attrs: Any, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    return elements(ins)


def _mean_reference(call: Call, x: Array) -> Array:
    mean = x.mean(axis=call.attrs.axes, keepdims=call.attrs.keepdims, dtype=np.float64)
    return np.asarray(mean).astype(x.dtype)


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
    "ReduceMean",
    "Mean over axes.",
    attrs=ReduceAttrs,
    arity=(1, 1),
    infer=_reduce_infer,
    reference=_mean_reference,
    macs=_reduced_elements,
    levels=FLOAT_ONLY,
    quant=QuantRule.FLOAT,
    integer="IntAveragePool when it reduces height and width",
    prune=PruneRule.BLOCKS,
)
