"""Convolutions with weights and inputs of few bits, for tests of kernels on all architectures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bevel.backends.kernel import Array, ConvConstants, ConvProblem

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}


def conv(h: int, w: int, c: int, oc: int, k: int = 1, **fields: Any) -> ConvProblem:
    return ConvProblem(**({"batch": 1, "h": h, "w": w, "c": c, "oc": oc, "kh": k, "kw": k} | fields))


SHAPES = {
    "resnet16": conv(9, 32, 16, 16, 3, **SAME),
    "resnet64": conv(8, 8, 64, 64, 3, **SAME),
    "resnet_down": conv(8, 10, 16, 32, 3, stride_h=2, stride_w=2, **SAME),
    "resnet_shortcut": conv(8, 8, 16, 32, 1, stride_h=2, stride_w=2),
    "pointwise": conv(25, 5, 64, 128),
    "gemv": conv(1, 1, 64, 12),
    "gemv_wide": conv(1, 1, 136, 203),
    "gemm": conv(1, 13, 40, 75),
    "uneven": conv(7, 31, 24, 72, 3, **SAME),
    "batch": conv(5, 11, 8, 13, 3, batch=2, **SAME),
    "dilated": conv(9, 9, 8, 40, 3, dilation_h=2, dilation_w=3, pad_top=2, pad_left=0, pad_bottom=1, pad_right=4),
    "tall_dilation": conv(12, 5, 16, 33, kh=3, kw=2, dilation_h=2, pad_right=1),
    "unpadded": conv(6, 9, 4, 17, kh=2, kw=3),
    "narrow": conv(5, 1, 12, 8, 3, **SAME),
    "tiny_map": conv(2, 2, 20, 40, 3, batch=3, **SAME),
    "cropped": conv(8, 8, 32, 5, 3, stride_h=3, stride_w=3),
    "wide_padding": conv(2, 2, 8, 4, 5, pad_top=4, pad_left=4, pad_bottom=4, pad_right=4),
    "many_blocks": conv(40, 60, 24, 4, 3, **SAME),
    "deep": conv(1, 49, 200, 70),
    "long": conv(3, 3, 320, 24, 3, **SAME),
    "ragged": conv(5, 6, 7, 10, 3, **SAME),
    "resnet128": conv(4, 9, 128, 24, 3, **SAME),
    # Runs of no whole groups beside units of channels that are whole.
    "gemv_ragged": conv(1, 3, 13, 203),
}


def variants(p: ConvProblem) -> list[ConvProblem]:
    """Every kind of epilogue."""
    quantized = replace(p, out_dtype=p.dtype)
    return [
        quantized,
        replace(quantized, clamp=True),
        replace(quantized, short_factors=True),
        replace(quantized, short_factors=True, clamp=True),
        replace(p, out_dtype="int32"),
    ]


def weights_of(p: ConvProblem, rng: np.random.Generator) -> Array:
    shape = (p.oc, p.c // p.groups, p.kh, p.kw)
    if p.index_bits:
        # The extremes of eight bits are among the values.
        values = np.concatenate([[-128, 127], rng.permutation(np.arange(-127, 127))[: (1 << p.index_bits) - 2]])
        return rng.choice(values.astype(np.int8), shape)
    if p.weight_bits == 1:
        return rng.choice(np.array([-1, 1], np.int8), shape)
    half = 1 << (p.weight_bits - 1)
    return rng.integers(-half, half, shape).astype(np.int8)


def inputs_of(p: ConvProblem, rng: np.random.Generator) -> Array:
    """NHWC codes."""
    return rng.integers(0, 1 << p.x_bits, (p.batch, p.h, p.w, p.c)).astype(np.uint8).view(np.dtype(p.dtype))


def constants_of(p: ConvProblem, rng: np.random.Generator) -> ConvConstants:
    """Weights, and factors that spread results over about the range of codes."""
    weights = weights_of(p, rng)
    spread = np.sqrt(weights[0].size) * (1 << p.weight_bits) / 3 * (1 << p.x_bits) / 3
    shift = rng.integers(30, 33, p.oc) + int(np.log2(max(4.0, spread))) - 6
    multiplier = rng.integers(1 << 30, 1 << 31, p.oc)
    if p.short_factors:
        shift = np.clip(shift, 32, 51)
        multiplier &= -np.left_shift(1, shift - 31)
    bias = rng.integers(-500, 500, p.oc).astype(np.int32)
    zero = int(rng.integers(0, 1 << p.x_bits))
    info = np.iinfo(p.dtype)
    lo, hi = (info.min + 3, info.min + 18) if p.clamp else (info.min, info.max)
    y_zero = int(rng.integers(info.min, info.max + 1))
    return ConvConstants(weights, bias, multiplier, shift, zero, y_zero, lo, hi)


def extremes(p: ConvProblem) -> list[tuple[Array, ConvConstants]]:
    """Largest codes with the heaviest weights, all of one sign and of alternating signs, and a large bias."""
    top = 1 if p.weight_bits == 1 else (1 << (p.weight_bits - 1)) - 1
    bottom = -1 if p.weight_bits == 1 else -(1 << (p.weight_bits - 1))
    shape = (p.oc, p.c // p.groups, p.kh, p.kw)
    x = np.full((p.batch, p.h, p.w, p.c), (1 << p.x_bits) - 1, np.uint8).view(np.dtype(p.dtype))
    mixed = np.where(np.arange(np.prod(shape)).reshape(shape) % 3 == 0, top, bottom)
    found = []
    for weights in (np.full(shape, top), np.full(shape, bottom), mixed):
        bias = np.full(p.oc, -(1 << 30), np.int32)
        found.append((x, ConvConstants(weights.astype(np.int8), bias, x_zero_point=0)))
    return found
