"""Weights whose groups of inputs share an integer factor: how groups lie in a tensor; codes and factors back from their products.

Integer sums have one scale for each output channel, so groups of inputs cannot have real scales of their own. They can have
integer ones: real = scale[o] * factor[o, g] * code[o, i], with factors of 4 bits (Dai et al. 2021, "VS-Quant: Per-vector Scaled
Quantization for Accurate Low-Precision Neural Network Inference"). Tensors hold the products, which fit int8, so that whatever
multiplies int8 weights computes them; `Quant.groups` says that they are products, and here is what that means: factors are not
kept beside them, they are found again. Another factorization of the same products computes the same, so the one with the greatest
factors, and least codes, stands for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.types import Groups

Array = npt.NDArray[Any]

FACTOR_MAX = 15
# The greatest factor that divides weights of a greatest common divisor; any divides zeros.
_GREATEST = np.asarray([max(f for f in range(1, FACTOR_MAX + 1) if divisor % f == 0) for divisor in range(129)], np.uint8)


def kernel_rows(weights: Array) -> Array:
    """Weights [O, K] or [O, C, KH, KW] as [O, rows, run]: by kernel rows, each in the order (KW, C)."""
    if weights.ndim == 2:
        return weights[:, None, :]
    ordered = weights.transpose(0, 2, 3, 1)
    return ordered.reshape(len(weights), weights.shape[2], weights.shape[3] * weights.shape[1])


def from_kernel_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `kernel_rows`: weights of `shape`."""
    if len(shape) == 2:
        return rows.reshape(shape)
    channels, inputs, height, width = shape
    return rows.reshape(channels, height, width, inputs).transpose(0, 3, 1, 2)


def group_count(shape: tuple[int, ...], size: int) -> int:
    """Groups of an output channel of weights of `shape`."""
    rows, run = (1, shape[1]) if len(shape) == 2 else (shape[2], shape[3] * shape[1])
    return rows * -(-run // size)


def by_group(rows: Array, size: int) -> Array:
    """[..., run] as [..., groups, size], the last group filled up with zeros."""
    run = rows.shape[-1]
    filled = np.zeros((*rows.shape[:-1], -(-run // size) * size), rows.dtype)
    filled[..., :run] = rows
    return filled.reshape(*rows.shape[:-1], -1, size)


def from_groups(grouped: Array, run: int) -> Array:
    """The inverse of `by_group`."""
    return grouped.reshape(*grouped.shape[:-2], -1)[..., :run]


def spread(factors: Array, shape: tuple[int, ...], size: int) -> Array:
    """Factors [O, rows, groups] at every weight of `shape`."""
    run = shape[1] if len(shape) == 2 else shape[3] * shape[1]
    return from_kernel_rows(np.repeat(factors, size, axis=-1)[..., :run], shape)


def factored(products: Array, groups: Groups) -> tuple[Array, Array]:
    """The codes, shaped like `products`, and the factors, uint8 [O, rows, groups], that weights are products of.

    Raises:
        ValueError: they are none.
    """
    rows = kernel_rows(products)
    codes, factors = factored_rows(rows, groups)
    return from_kernel_rows(codes, products.shape), factors


def factored_rows(rows: Array, groups: Groups) -> tuple[Array, Array]:
    """The same of [O, rows, run] as `kernel_rows` orders them: codes of that shape, uint8 factors [O, rows, groups].

    Raises:
        ValueError: a group has no factor.
    """
    cut = by_group(rows.astype(np.int16), groups.size)
    low, high = cut.min(axis=-1, initial=0), cut.max(axis=-1, initial=0)
    factors = _GREATEST[np.gcd.reduce(cut, axis=-1)]
    fits = (low >= factors.astype(np.int16) * groups.codes.min) & (high <= factors.astype(np.int16) * groups.codes.max)
    if not fits.all():
        channel, row, group = (int(i) for i in np.argwhere(~fits)[0])
        raise ValueError(
            f"weights {cut[channel, row, group].tolist()} of output channel {channel} are no multiples of {groups.codes} by 1 to "
            f"{FACTOR_MAX}"
        )
    codes = from_groups(cut // factors[..., None].astype(np.int16), rows.shape[-1]).astype(np.int8)
    if groups.codes.bipolar and not codes.all():
        raise ValueError("weights in groups of bipolar codes hold 0")
    return codes, factors
