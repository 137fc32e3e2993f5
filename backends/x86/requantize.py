"""Exact dyadic requantization of int32 sums on x86: zp + ((acc * m + 2^(n-1)) >> n) for every n in 1..62, one rounding.

In: vectors of int32 sums and per-channel parameters packed here. Out: int32 codes before saturation, or stored uint8 codes.

The 64-bit products come from vpmuldq, which multiplies the low half of every 64-bit lane: even channels as they are, odd channels
after a shift. Sums are first clamped to +-limit, per channel, where any sum beyond gives a code far outside every code range;
with that the product shifted by n - 1 fits int32 for any multiplier (a scale may be as large as 2^30), so the halves are joined
by a shuffle; rounding, the last bit of the shift and the zero point follow in 32 bits, which no shift amount can overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.kernels.tiling import store_valid
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.errors import CheckFailed

# Any code beyond this saturates, and twice this and the double step of one sum (at most 2^30) still fit int32.
_FAR = 1 << 28
# With a shift of 1 the step could be larger; codes of any sum but 0 saturate from here on.
_STEEP = 1 << 20
# AVX2 has no arithmetic 64-bit shift: products are made non-negative by this before a logical shift.
_LIFT = 62


def limits(multiplier: Array, shift: Array) -> Array:
    """Per-channel bound on |sum| beyond which every code saturates, at most 2^31 - 1."""
    bounds = [
        (1 << 31) - 1 if m == 0 else min((1 << 31) - 1, (_FAR << n) // m + 1)
        for m, n in zip(multiplier.tolist(), shift.tolist(), strict=True)
    ]
    return np.array(bounds, np.int64)


def pack(constants: ConvConstants, lanes: int, lifted: bool) -> Array:
    """Parameters as int64, one record of 3.5 * lanes elements per vector of channels.

    A record is four arrays of lanes / 2 int64 (multiplier and shift - 1, each for even then odd channels), then three of `lanes`
    int32: -limit, limit, and 2 z + 1, since (p + 2^(n-1) >> n) + z is (p >> n-1) + 2 z + 1 >> 1. With `lifted`, the last takes
    2^(63-n) back, modulo 2^32.
    """
    if constants.multiplier is None or constants.shift is None:
        raise CheckFailed("a requantized convolution was packed without multiplier and shift")
    channels = -(-len(constants.shift) // lanes) * lanes

    def padded(values: Array, fill: int) -> Array:
        full = np.full(channels, fill, np.int64)
        full[: len(values)] = values
        return full.reshape(-1, lanes)

    m, n = padded(constants.multiplier, 0), padded(constants.shift, 1)
    bound = padded(limits(constants.multiplier, constants.shift), 0)
    m = np.where(n == 1, np.minimum(m, _STEEP), m)
    offset = np.full_like(n, 2 * constants.y_zero_point + 1)
    if lifted:
        offset -= np.left_shift(np.int64(1), _LIFT + 1 - n)
    wide = [half for values in (m, n - 1) for half in (values[:, 0::2], values[:, 1::2])]
    narrow = np.concatenate([-bound, bound, offset], axis=1).astype(np.uint64).astype(np.uint32).view(np.int64)
    return np.ascontiguousarray(np.concatenate([*wide, narrow], axis=1)).ravel()


def requantize(k: Builder, sums: Expr, params: Buffer, channel: Expr, lanes: int, lifted: bool) -> Expr:
    """Int32 codes of channels [channel, channel + lanes), zero point added, not yet saturated.

    Args:
        k: builder.
        sums: int32 vector of `lanes`.
        params: from `pack` with the same `lanes` and `lifted`.
        channel: first channel, a multiple of `lanes`.
        lanes: 16 (AVX-512) or 8 (AVX2).
        lifted: whether to shift logically (AVX2).
    """
    half = lanes // 2
    base = channel * 7 // 2

    def wide(index: int) -> Expr:
        return k.load(params, base + index * half, half)

    def narrow(index: int) -> Expr:
        return k.bitcast(wide(4 + index), "int32", lanes)

    bits = k.const(32, "int64", half)

    def low(value: Expr) -> Expr:
        # LLVM selects vpmuldq when both factors visibly are sign-extended 32-bit values.
        return k.shift_right(k.shift_left(value, bits), bits)

    def shifted(value: Expr, parity: int) -> Expr:
        product, n = value * low(wide(parity)), wide(2 + parity)
        if lifted:
            # |product| < 2^62, so lifting it fits int64.
            product = product + k.const(1 << _LIFT, "int64", half)
            product, n = (k.bitcast(v, "uint64", half) for v in (product, n))
        return k.bitcast(k.shift_right(product, n), "int32", lanes)

    clamped = k.min(k.max(sums, narrow(0)), narrow(1))
    pairs = k.bitcast(clamped, "int64", half)
    even = shifted(low(pairs), 0)
    odd = shifted(k.shift_right(pairs, bits), 1)
    # Little-endian: lane 2i of each holds the low half of 64-bit lane i.
    joined = k.shuffle([even, odd], [i if i % 2 == 0 else lanes + i - 1 for i in range(lanes)])
    total = k.wrapping_add(k.bitcast(joined, "uint32", lanes), k.bitcast(narrow(2), "uint32", lanes), lanes)
    return k.shift_right(k.bitcast(total, "int32", lanes), k.const(1, "int32", lanes))


def pack_short(factors: Array) -> Array:
    """Short factors of channels, doubled: int32, padded by the vector that reading odd channels at once passes the end by."""
    return np.concatenate([2 * factors, np.zeros(-len(factors) % 16 + 16, np.int64)]).astype(np.int32)


def requantize_short(k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer, lanes: int) -> Expr:
    """Int32 codes of channels [channel, channel + lanes), not yet saturated, where factors are f * 2^-31.

    zp + ((acc * f + 2^30) >> 31) is the high half of acc * 2f + (zp << 32) + 2^31, which fits int64 because f < 2^30.

    Args:
        k: builder.
        sums: int32 vector of `lanes`.
        params: from `pack_short`.
        channel: first channel.
        bias: its header holds the addend (`bevel.backends.kernels.conv`).
        lanes: 4 to 16.
    """
    half = lanes // 2
    bits = k.const(32, "int64", half)
    addend = k.splat(k.bitcast(k.load(bias, k.i32(4), 2), "int64"), half)

    def product(pairs: Expr, first: int) -> Expr:
        # The low half of each 64-bit lane; read one element later, these are the odd channels' factors.
        factors = k.bitcast(k.load(params, channel + first, lanes), "int64", half)
        factors = k.shift_right(k.shift_left(factors, bits), bits)
        return k.bitcast(pairs * factors + addend, "int32", lanes)

    pairs = k.bitcast(sums, "int64", half)
    even = product(k.shift_right(k.shift_left(pairs, bits), bits), 0)
    odd = product(k.shift_right(pairs, bits), 1)
    return k.shuffle([even, odd], [i + 1 if i % 2 == 0 else lanes + i for i in range(lanes)])


def clamp_codes(k: Builder, codes: Expr, lanes: int, bounds: Sequence[Expr]) -> Expr:
    """Clamp uint8 codes to the int32 scalars lo and hi; unchanged when `bounds` is empty."""
    if not bounds:
        return codes
    low, high = (k.splat(k.cast(bound, "uint8"), lanes) for bound in bounds)
    return k.min(k.max(codes, low), high)


def store_avx512(k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, bounds: Sequence[Expr]) -> None:
    """Saturate vectors of 16 int32 to uint8 (vpmovusdb), or clamp to `bounds`, and store `valid` codes."""
    for j, value in enumerate(values):
        low, high = bounds or (k.i32(0), k.i32(255))
        clamped = k.min(k.max(value, k.splat(low, 16)), k.splat(high, 16))
        codes = k.cast(clamped, "uint8", 16)
        store_valid(k, y, offset + j * 16, codes, 16, min(16, valid - j * 16))


def store_avx2(k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, bounds: Sequence[Expr]) -> None:
    """Saturate vectors of 8 int32 to uint8 in pairs (vpackssdw, vpackuswb), clamp to `bounds`, and store `valid` codes."""
    for j in range(0, len(values), 2):
        pair = values[j : j + 2]
        words = k.call("int16x16", "llvm.x86.avx2.packssdw", pair[0], pair[-1])
        # vpackssdw works within 128-bit halves: its 64-bit quarters are a0 b0 a1 b1.
        first = k.shuffle([words], [*range(4), *range(8, 12)])
        second = k.shuffle([words], [*range(4, 8), *range(12, 16)])
        codes = k.bitcast(k.call("int8x16", "llvm.x86.sse2.packuswb.128", first, second), "uint8", 16)
        codes = clamp_codes(k, codes, 16, bounds)
        store_valid(k, y, offset + j * 8, codes, 16, min(8 * len(pair), valid - j * 8))
