"""Quantized types from observed ranges, weights and biases, with the floors that keep the integer contract provable."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UnsupportedModel
from bevel.ir.types import I8, I32, Quant
from bevel.passes.quantize.dyadic import exact

Array = npt.NDArray[Any]

# Below this a float32 product of two scales would leave the normal range, and with it the annotated graph's semantics.
MIN_SCALE = 2.0**-60
# Greatest |bias|: leaves the other half of int32 to the products.
MAX_BIAS = 1 << 30
# |bias| of a channel without weights: fine enough for any 8-bit result, small enough for any factor (`dyadic.channel_factors`).
LONE_BIAS = 1 << 20
# IntAdd's factors exist while an operand's scale is below about 2^21 times the result's.
MAX_ADD_RATIO = 2.0**20
WEIGHT_MAX = 127


def float32_scale(scale: float) -> float:
    """`scale` rounded to float32, so that the float boundary and the exact ratios use one number; floored."""
    return float(np.float32(max(scale, MIN_SCALE)))


def _float32_at_least(value: float) -> float:
    rounded = np.float32(value)
    return float(rounded if float(rounded) >= value else np.nextafter(rounded, np.float32(np.inf)))


def activation_type(lo: float, hi: float, floor: float = 0.0) -> Quant:
    """Asymmetric int8 type over [lo, hi] widened to contain 0, with a scale of at least `floor`."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        return Quant(I8, (_float32_at_least(max(1.0, floor)),), (I8.min,))
    scale = float32_scale(max((hi - lo) / (I8.max - I8.min), floor))
    return Quant(I8, (scale,), (int(np.clip(np.rint(I8.min - lo / scale), I8.min, I8.max)),))


def constant_type(values: Array) -> Quant:
    """Type of a constant operand: exact where all elements are equal, else symmetric to its largest magnitude."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return Quant(I8, (1.0,))
    steps = 1 if np.unique(values).size == 1 else WEIGHT_MAX
    return Quant(I8, (float32_scale(largest / steps),))


def weight_type(weights: Array, largest: Array, bias: Array, x_scale: float, layer: str) -> Quant:
    """Symmetric int8 type with one scale per output channel.

    Args:
        weights: reals [O, ...], for the check only.
        largest: magnitude [O] that maps to code 127.
        bias: reals [O]; a scale is raised until |bias| / (x_scale * scale) <= 2^30, or 2^20 where all weights are zero.
        x_scale: the layer input's scale.
        layer: name for messages.

    Raises:
        UnsupportedModel: weights or bias hold NaN or infinity.
    """
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise UnsupportedModel(f"layer {layer!r}: its weights or bias hold NaN or infinity; repair or re-export the model")
    scales = []
    for magnitude, b in zip(largest.astype(np.float64), np.abs(bias.astype(np.float64)), strict=True):
        own, floor = float(magnitude) / WEIGHT_MAX, float(b) / (x_scale * (MAX_BIAS if magnitude else LONE_BIAS))
        # A channel of zeros with no bias computes zero at any scale.
        wanted = max(own, floor) or 1.0
        scales.append(_float32_at_least(max(floor, MIN_SCALE)) if floor >= own and floor > 0 else float32_scale(wanted))
    return Quant(I8, tuple(scales), (0,), axis=0)


def weight_codes(weights: Array, type_: Quant) -> Array:
    """int8 codes clamp(rint(w / s), -127, 127) of reals [O, ...]."""
    scale = np.asarray(type_.scale, np.float64).reshape(-1, *([1] * (weights.ndim - 1)))
    return np.clip(np.rint(weights.astype(np.float64) / scale), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def bias_type(x_scale: float, weights: Quant) -> Quant:
    """int32 type at the accumulator's scale; the product of two float32 scales is exact in float64."""
    return Quant(I32, tuple(x_scale * s for s in weights.scale), (0,), axis=0)


def bias_codes(bias: Array, type_: Quant) -> Array:
    """int32 codes: the exact quotient, rounded half to even."""
    return np.asarray([round(exact(float(b)) / exact(s)) for b, s in zip(bias, type_.scale, strict=True)], np.int32)


def corrected_bias_codes(codes: Array, correction: Array, type_: Quant) -> Array:
    """Bias codes with `correction`, reals [O], added; they stay within 2^30, as overflow proofs rest on it."""
    moved = codes + np.rint(correction / np.asarray(type_.scale))
    return np.asarray(np.clip(moved, -MAX_BIAS, MAX_BIAS), np.int32)
