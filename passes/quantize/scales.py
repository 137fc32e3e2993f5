"""Quantized types from observed ranges, constants and biases, with the floors that keep the integer contract provable."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.types import I8, I32, Codebook, Int, Quant
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
CONSTANT_MAX = 127


def float32_scale(scale: float) -> float:
    """`scale` rounded to float32, so that the float boundary and the exact ratios use one number; floored."""
    return float(np.float32(max(scale, MIN_SCALE)))


def float32_at_least(value: float) -> float:
    """The least float32 that is `value` or more."""
    rounded = np.float32(value)
    return float(rounded if float(rounded) >= value else np.nextafter(rounded, np.float32(np.inf)))


def activation_type(lo: float, hi: float, floor: float = 0.0, bits: int = 8) -> Quant:
    """Asymmetric type over [lo, hi] widened to contain 0, with a scale of at least `floor`: int8, or unsigned below 8 bits."""
    storage = Int(bits, signed=bits == I8.bits)
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        return Quant(storage, (float32_at_least(max(1.0, floor)),), (storage.min,))
    scale = float32_scale(max((hi - lo) / (storage.max - storage.min), floor))
    return Quant(storage, (scale,), (int(np.clip(np.rint(storage.min - lo / scale), storage.min, storage.max)),))


def constant_type(values: Array) -> Quant:
    """Type of a constant operand: exact where all elements are equal, else symmetric to its largest magnitude."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return Quant(I8, (1.0,))
    steps = 1 if np.unique(values).size == 1 else CONSTANT_MAX
    return Quant(I8, (float32_scale(largest / steps),))


def bias_type(x_scale: float, weights: Quant | Codebook) -> Quant:
    """int32 type at the accumulator's scale; the product of two float32 scales is exact in float64."""
    return Quant(I32, tuple(x_scale * s for s in weights.scale), (0,), axis=0)


def bias_codes(bias: Array, type_: Quant) -> Array:
    """int32 codes: the exact quotient, rounded half to even."""
    return np.asarray([round(exact(float(b)) / exact(s)) for b, s in zip(bias, type_.scale, strict=True)], np.int32)


def corrected_bias_codes(codes: Array, correction: Array, type_: Quant) -> Array:
    """Bias codes with `correction`, reals [O], added; they stay within 2^30, as overflow proofs rest on it."""
    moved = codes + np.rint(correction / np.asarray(type_.scale))
    return np.asarray(np.clip(moved, -MAX_BIAS, MAX_BIAS), np.int32)
