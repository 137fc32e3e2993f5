"""Exact dyadic requantization of int32 sums on x86: zp + ((acc * m + 2^(n-1)) >> n) for every n in 1..62, one rounding.

In: vectors of int32 sums and the packed parameters of `bevel.backends.kernels.parameters`. Out: int32 codes before saturation, or
stored uint8 codes.

The 64-bit products come from vpmuldq, which multiplies the low half of every 64-bit lane: even channels as they are, odd channels
after a shift. Sums are first clamped to +-limit, per channel, where any sum beyond gives a code far outside every code range;
with that the product shifted by n - 1 fits int32 for any multiplier (a scale may be as large as 2^30), so the halves are joined
by a shuffle; rounding, the last bit of the shift and the zero point follow in 32 bits, which no shift amount can overflow.

The limit depends on n alone: 2^31 - 1 from n = 34 on, half of it for each n below that, at least 1. A shifted product is then at
most 2^29, and a sum beyond the limit has a code beyond 2^26. Up to n = 4, where the limit is 1, the code of any sum but 0 is that
far out; multipliers of 2^20 keep it out of range and make the product fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bevel.backends.kernel import Array
from bevel.backends.kernels.parameters import Fields
from bevel.backends.kernels.tiling import store_valid
from bevel.backends.tvm import Buffer, Builder, Expr

# The least shift whose products fit for any sum, and the largest that any sum but 0 saturates with a limit of 1.
_LONG, _SHORT = 34, 4
_STEEP = 1 << 20
# AVX2 has no arithmetic 64-bit shift: products are made non-negative by this before a logical shift.
_LIFT = 62
FIELDS = 7


def expand(k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int, lifted: bool) -> list[Expr]:
    """The record of `lanes` channels.

    Multiplier and shift - 1 as int64, each for even then odd channels; then -limit, limit and 2 z + 1, since
    (p + 2^(n-1) >> n) + z is (p >> n-1) + 2 z + 1 >> 1. With `lifted`, the last takes 2^(63-n) back, modulo 2^32.

    Args:
        k: builder.
        multiplier: int32 vector.
        shift: int32 vector.
        zero_point: int32 scalar.
        lanes: 16 (AVX-512) or 8 (AVX2), or what is left of them.
        lifted: whether to shift logically (AVX2).
    """
    half = lanes // 2

    def const(value: int) -> Expr:
        return k.const(value, "int32", lanes)

    def odd(value: Expr) -> Expr:
        return k.bitcast(k.shift_right(k.bitcast(value, "int64", half), k.const(32, "int64", half)), "int32", lanes)

    def even(value: Expr) -> Expr:
        return k.bitcast(k.bitwise_and(k.bitcast(value, "int64", half), k.const(0xFFFFFFFF, "int64", half)), "int32", lanes)

    limit = k.shift_right(const((1 << 31) - 1), k.min(k.max(const(_LONG) - shift, const(0)), const(30)))
    multiplier = k.select(shift > const(_SHORT), multiplier, k.min(multiplier, const(_STEEP)))
    offset = k.splat(zero_point * 2 + 1, lanes)
    if lifted:
        # A multiple of 2^32 up to n = 31; vectors have no shift by 32 or more.
        lift = k.shift_left(const(-1), k.min(const(_LIFT + 1) - shift, const(31)))
        lift = k.select(shift > const(31), lift, const(0))
        total = k.wrapping_add(k.bitcast(offset, "uint32", lanes), k.bitcast(lift, "uint32", lanes), lanes)
        offset = k.bitcast(total, "int32", lanes)
    less = shift - const(1)
    return [multiplier, odd(multiplier), even(less), odd(less), const(0) - limit, limit, offset]


def requantize(k: Builder, sums: Expr, field: Fields, lanes: int, lifted: bool) -> Expr:
    """Int32 codes of a vector of channels, zero point added, not yet saturated.

    Args:
        k: builder.
        sums: int32 vector of `lanes`.
        field: what `expand` made with the same `lanes` and `lifted`.
        lanes: 16 (AVX-512) or 8 (AVX2), or what is left of them.
        lifted: whether to shift logically (AVX2).
    """
    half = lanes // 2
    bits = k.const(32, "int64", half)

    def wide(index: int) -> Expr:
        return k.bitcast(field(index), "int64", half)

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

    clamped = k.min(k.max(sums, field(4)), field(5))
    pairs = k.bitcast(clamped, "int64", half)
    even = shifted(low(pairs), 0)
    odd = shifted(k.shift_right(pairs, bits), 1)
    # Little-endian: lane 2i of each holds the low half of 64-bit lane i.
    joined = k.shuffle([even, odd], [i if i % 2 == 0 else lanes + i - 1 for i in range(lanes)])
    total = k.wrapping_add(k.bitcast(joined, "uint32", lanes), k.bitcast(field(6), "uint32", lanes), lanes)
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
