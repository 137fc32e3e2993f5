"""Resize: results at source coordinates that are affine in the result's index, separable by axis.

Every coordinate transformation of ONNX is affine: result index i reads the source at (a * i + b) / d, exact integers that the
frontend derives. What an axis needs at run time, source indices and weights, are tables (`nearest_table`, `weight_tables`) that
the references below and the kernels share. Cubic interpolation is that of Keys (1981).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import (
    EVERYWHERE,
    FLOAT_ONLY,
    INTEGER_ONLY,
    Call,
    PruneRule,
    QuantRule,
    Trait,
    elements,
    no_macs,
    register,
    require,
    require_axis,
    require_per_tensor,
    require_real,
)
from bevel.ir.types import I8, Dim, Quant, TensorType

Array = npt.NDArray[Any]

ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
# Taps of the unstretched filters on each side of a coordinate.
SUPPORT = {"linear": 1, "cubic": 2}
# Most bits of a fixed-point weight: with its sign it fits int16.
MAX_WEIGHT_BITS = 14


@dataclass(frozen=True)
class SamplingAttrs:
    """Resized axes, their new extents, and for each the (a, b, d) of its source coordinate (a * i + b) / d."""

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    coordinates: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class ResizeNearestAttrs(SamplingAttrs):
    """Sampling, and how coordinates round: floor, ceil, round_prefer_floor, round_prefer_ceil."""

    rounding: str = "floor"


@dataclass(frozen=True)
class ResizeAttrs(SamplingAttrs):
    """Sampling and filter.

    Attributes:
        mode: linear or cubic.
        cubic: coefficient A of the cubic filter.
        stretch: for each axis how much the filter is widened against aliasing; 1.0 for none.
        exclude_outside: taps beyond the ends get no weight instead of the end's element.
    """

    mode: str = "linear"
    cubic: float = -0.75
    stretch: tuple[float, ...] = ()
    exclude_outside: bool = False


@dataclass(frozen=True)
class IntResizeAttrs(ResizeAttrs):
    """Sampling and filter, with weights of `bits` fractional bits for each axis."""

    bits: int = 11


def nearest_table(attrs: ResizeNearestAttrs, which: int, extent: int) -> Array:
    """Source index of every result index along axis `attrs.axes[which]` of `extent` elements: int64 [size]."""
    a, b, d = attrs.coordinates[which]
    index = a * np.arange(attrs.sizes[which], dtype=np.int64) + b
    if attrs.rounding == "floor":
        index = index // d
    elif attrs.rounding == "ceil":
        index = -(-index // d)
    elif attrs.rounding == "round_prefer_floor":
        index = -((d - 2 * index) // (2 * d))
    else:
        index = (2 * index + d) // (2 * d)
    return np.asarray(np.clip(index, 0, extent - 1))


def filter_weights(mode: str, cubic: float, distance: Array) -> Array:
    """The filter at `distance` from its centre; float64."""
    t = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(1 - t, 0))
    near = ((cubic + 2) * t - (cubic + 3)) * t * t + 1
    far = ((cubic * t - 5 * cubic) * t + 8 * cubic) * t - 4 * cubic
    return np.asarray(np.where(t <= 1, near, np.where(t < 2, far, 0.0)))


def weight_table(attrs: ResizeAttrs, which: int, extent: int) -> tuple[Array, Array]:
    """Taps of every result index along axis `attrs.axes[which]` of `extent` elements.

    Returns:
        Source indices, int64 [size, taps], and their weights, float64 [size, taps], each row of which sums to 1.
    """
    a, b, d = attrs.coordinates[which]
    numerator = a * np.arange(attrs.sizes[which], dtype=np.int64) + b
    whole, fraction = numerator // d, (numerator % d) / d
    stretch = attrs.stretch[which] if attrs.stretch else 1.0
    reach = int(np.ceil(SUPPORT[attrs.mode] * stretch))
    offsets = np.arange(1 - reach, reach + 1)
    index = whole[:, None] + offsets
    weights = filter_weights(attrs.mode, attrs.cubic, (offsets - fraction[:, None]) / stretch)
    if attrs.exclude_outside:
        inside = np.where((index < 0) | (index >= extent), 0.0, weights)
        # Where nothing lies inside, the end's element is all there is.
        weights = np.where(inside.any(axis=1, keepdims=True), inside, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(index, 0, extent - 1), weights


def weight_tables(attrs: ResizeAttrs, shape: Sequence[int | Dim]) -> list[tuple[Array, Array]]:
    """`weight_table` of every resized axis of an operand of `shape`."""
    return [weight_table(attrs, i, int(extent)) for i, extent in enumerate(_extents(attrs, shape))]


def fixed_point_tables(attrs: IntResizeAttrs, shape: Sequence[int | Dim]) -> list[tuple[Array, Array]]:
    """`weight_tables` with int64 weights of `attrs.bits` fractional bits.

    Weights round to nearest, ties to even; the largest of a row (the first of equals) then takes what is left of 2^bits, so that
    a constant image stays constant.
    """
    fixed = []
    for index, weights in weight_tables(attrs, shape):
        codes = np.rint(weights * (1 << attrs.bits)).astype(np.int64)
        rows = np.arange(len(codes))
        codes[rows, weights.argmax(axis=1)] += (1 << attrs.bits) - codes.sum(axis=1)
        fixed.append((index, codes))
    return fixed


def fits_int32(attrs: IntResizeAttrs, shape: Sequence[int | Dim]) -> bool:
    """Whether no accumulator of 8-bit codes, rounding included, can reach 2^31."""
    reach = 255
    for _, weights in fixed_point_tables(attrs, shape):
        reach *= int(np.abs(weights).sum(axis=1).max())
    total = attrs.bits * len(attrs.axes)
    return reach + (1 << (total - 1)) < 1 << 31


def _extents(attrs: SamplingAttrs, shape: Sequence[int | Dim]) -> list[int]:
    extents = [shape[axis] for axis in attrs.axes]
    return [d for d in extents if isinstance(d, int)]


def _sampling_shape(attrs: SamplingAttrs, x: TensorType) -> TensorType:
    require_per_tensor(x)
    count = len(attrs.axes)
    require(
        count >= 1 and count == len(attrs.sizes) == len(attrs.coordinates), f"{count} axes need as many sizes and coordinates"
    )
    require(len(set(attrs.axes)) == count, f"axes {attrs.axes} repeat")
    require(all(n >= 1 for n in attrs.sizes), f"sizes {attrs.sizes}, expected 1 or more")
    require(all(d >= 1 for _, _, d in attrs.coordinates), f"coordinates {attrs.coordinates} need positive denominators")
    shape = list(x.shape)
    for axis, size in zip(attrs.axes, attrs.sizes, strict=True):
        require_axis(axis, x.rank)
        extent = shape[axis]
        require(isinstance(extent, int) and extent >= 1, f"resized dimension {extent}: expected a static extent of 1 or more")
        shape[axis] = size
    return x.with_shape(tuple(shape))


def _nearest_infer(attrs: ResizeNearestAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require(attrs.rounding in ROUNDINGS, f"rounding {attrs.rounding!r}, expected one of {', '.join(ROUNDINGS)}")
    return (_sampling_shape(attrs, ins[0]),)


def _nearest_reference(call: Call, x: Array) -> Array:
    for i, axis in enumerate(call.attrs.axes):
        x = np.take(x, nearest_table(call.attrs, i, x.shape[axis]), axis=axis)
    return x


def _resize_infer(attrs: ResizeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require(attrs.mode in SUPPORT, f"mode {attrs.mode!r}, expected one of {', '.join(SUPPORT)}")
    stretched = len(attrs.stretch) in (0, len(attrs.axes)) and all(s >= 1.0 for s in attrs.stretch)
    require(stretched, f"stretch {attrs.stretch}: expected one number of 1.0 or more for each axis")
    return (_sampling_shape(attrs, ins[0]),)


def _resize_float_infer(attrs: ResizeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    require_real(ins[0])
    return _resize_infer(attrs, ins)


def _contract(x: Array, axis: int, index: Array, weights: Array) -> Array:
    """Sum of weighted taps along `axis`, in the dtype of `weights`."""
    rows = weights.reshape(weights.shape[0], weights.shape[1], *([1] * (x.ndim - axis - 1)))
    total = np.zeros((*x.shape[:axis], len(index), *x.shape[axis + 1 :]), weights.dtype)
    for tap in range(index.shape[1]):
        total += np.take(x, index[:, tap], axis=axis) * rows[:, tap]
    return total


def _resize_reference(call: Call, x: Array) -> Array:
    y = x
    for axis, (index, weights) in zip(call.attrs.axes, weight_tables(call.attrs, x.shape), strict=True):
        y = _contract(y, axis, index, weights)
    return y.astype(x.dtype)


def _int_resize_infer(attrs: IntResizeAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    elem = ins[0].elem
    require(isinstance(elem, Quant) and elem.storage == I8, f"operand is {elem}, expected int8 codes")
    require(1 <= attrs.bits <= MAX_WEIGHT_BITS, f"weights of {attrs.bits} bits, expected 1..{MAX_WEIGHT_BITS}")
    result = _resize_infer(attrs, ins)
    require(fits_int32(attrs, ins[0].shape), f"weights of {attrs.bits} bits overflow int32 accumulators")
    return result


def _int_resize_reference(call: Call, x: Array) -> Array:
    total = call.attrs.bits * len(call.attrs.axes)
    acc = x.astype(np.int64)
    for axis, (index, weights) in zip(call.attrs.axes, fixed_point_tables(call.attrs, x.shape), strict=True):
        acc = _contract(acc, axis, index, weights)
    return np.asarray(np.clip((acc + (1 << (total - 1))) >> total, -128, 127).astype(x.dtype))


def _taps(attrs: ResizeAttrs, _ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> int:
    count = elements(outs)
    for i in range(len(attrs.axes)):
        count *= 2 * int(np.ceil(SUPPORT[attrs.mode] * (attrs.stretch[i] if attrs.stretch else 1.0)))
    return count


register(
    "ResizeNearest",
    "The nearest source element at every resampled position.",
    attrs=ResizeNearestAttrs,
    arity=(1, 1),
    infer=_nearest_infer,
    reference=_nearest_reference,
    macs=no_macs,
    levels=EVERYWHERE,
    traits={Trait.MOVEMENT},
    quant=QuantRule.SAME,
    integer="ResizeNearest",
    prune=PruneRule.CARRIES,
    tolerance=0.0,
)
register(
    "Resize",
    "Linear or cubic interpolation at every resampled position.",
    attrs=ResizeAttrs,
    arity=(1, 1),
    infer=_resize_float_infer,
    reference=_resize_reference,
    macs=_taps,
    levels=FLOAT_ONLY,
    quant=QuantRule.SAME,
    integer="IntResize",
    prune=PruneRule.CARRIES,
    tolerance=1e-6,
)
register(
    "IntResize",
    "Interpolation with fixed-point weights: clamp((sum w * q + 2^(n-1)) >> n), n bits in all.",
    attrs=IntResizeAttrs,
    arity=(1, 1),
    infer=_int_resize_infer,
    reference=_int_resize_reference,
    macs=_taps,
    levels=INTEGER_ONLY,
    quant=QuantRule.NONE,
    integer="IntResize",
    prune=PruneRule.CARRIES,
    tolerance=0.0,
)
