"""Exact dyadic requantization of int32 sums with SSE2 alone: zp + ((acc * m + 2^(n-1)) >> n) for every n in 1..62, one rounding.

In: vectors of 4 int32 sums and the parameters of `bevel.backends.kernels.parameters`. Out: int32 codes before saturation, or
stored uint8 codes.

SSE2 multiplies unsigned 32-bit numbers only (pmuludq, the low half of every 64-bit lane), shifts all lanes by one amount and has
no 32-bit minimum. So, for n >= 33::

    u = acc + 2^31                                       unsigned
    h = (u * m + 2^62 + 2^(n-1) - 2^31 * m) >> 32        non-negative; the sum stays below 2^64
    q = (h * 2^(64-n)) >> 32  =  h >> (n - 32)           the shift of a lane is a multiplication; nested floors compose
    code = q + zp - 2^(62-n)

Both shifts by 32 are the shuffles that join even and odd lanes.

n < 33 (a ratio m / 2^n of 1/4 or more) becomes n = 33 by acc * 2^(33-n), with acc saturated to 16 bits first: where that changes
acc, the true code and the computed one are both beyond +-2^13, and of one sign. The product is one pmaddwd. n < 21 equals n = 21:
any acc but 0 gives a code beyond +-2^9, past every limit whatever the zero point. Such ratios are rare, so vectors without one
branch past this step, which is worth a third of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernels.parameters import Fields
from bevel.backends.kernels.tiling import store_valid
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.requantize import clamp_codes

LANES = 4
FIELDS = 9
# The first shift that needs no scaled sum, and the least that is told apart.
_LONG, _SHORTEST = 33, 21
# Makes products non-negative; a multiple of every 2^n.
_LIFT = 62


def expand(k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr) -> list[Expr]:
    """The record of 4 channels.

    Six pairs of 64 bits (multiplier and addend of channels 0 and 2, then of 1 and 3; factor 2^(64-n) of channels 0 and 1, then 2
    and 3), then three quads of 32 bits (a mask of sums used as they are, the scale of the others, zero point). The first
    multiplier is made negative where any sum is scaled.

    Args:
        k: builder.
        multiplier: int32 vector of 4.
        shift: int32 vector of 4.
        zero_point: int32 scalar.
    """

    def const(value: int, lanes: int = LANES, dtype: str = "int32") -> Expr:
        return k.const(value, dtype, lanes)

    def quad(value: Expr) -> Expr:
        return k.bitcast(value, "int32", LANES)

    def pair(value: Expr, channels: Sequence[int]) -> Expr:
        return k.cast(k.shuffle([value], channels), "int64", 2)

    one, direct = const(1, 2, "int64"), shift > const(_LONG - 1)

    def power(exponents: Expr) -> Expr:
        # By 64-bit lanes: LLVM makes powers of two in 32-bit lanes by way of float32.
        halves = [k.bitcast(k.shift_left(one, pair(exponents, channels)), "int32", LANES) for channels in ((0, 1), (2, 3))]
        return k.shuffle(halves, (0, 2, 4, 6))

    scale = k.select(direct, const(0), power(const(_LONG) - k.min(k.max(shift, const(_SHORTEST)), const(_LONG))))
    n = k.max(shift, const(_LONG))
    wide = []
    for channels in ((0, 2), (1, 3)):
        m = pair(multiplier, channels)
        # At most 2^62 + 2^61.
        half = k.shift_left(one, pair(n, channels) - one)
        wide += [m, const(1 << _LIFT, 2, "int64") - k.shift_left(m, const(31, 2, "int64")) + half]
    factors = [k.shift_left(one, const(64, 2, "int64") - pair(n, channels)) for channels in ((0, 1), (2, 3))]
    scaled = const(0, 1) < k.max(k.max(*(_lane(k, scale, i) for i in (0, 1))), k.max(*(_lane(k, scale, i) for i in (2, 3))))
    mark = k.select(scaled, const(-1 << 63, 1, "int64"), const(0, 1, "int64"))
    wide[0] = k.bitwise_or(wide[0], k.shuffle([k.splat(mark, 2), const(0, 2, "int64")], (0, 2)))
    # 2^(62-n) modulo 2^32 is 0 up to n = 30, which is less than any here.
    zero = k.splat(zero_point, LANES) - power(const(_LIFT) - n)
    return [*map(quad, (*wide, *factors)), k.select(direct, const(-1), const(0)), scale, zero]


def _lane(k: Builder, vector: Expr, lane: int) -> Expr:
    return k.shuffle([vector], [lane])


def requantize(k: Builder, sums: Expr, field: Fields) -> Expr:
    """Int32 codes of a vector of channels, zero point added, not yet saturated.

    Args:
        k: builder.
        sums: int32 vector of 4.
        field: what `expand` made.
    """
    bits = k.const(32, "uint64", 2)

    def wide(index: int) -> Expr:
        return k.bitcast(field(index), "uint64", 2)

    def narrow(index: int, dtype: str = "uint32", lanes: int = LANES) -> Expr:
        return k.bitcast(field(6 + index), dtype, lanes)

    def low(value: Expr) -> Expr:
        # LLVM selects pmuludq, and drops these shifts, when both factors visibly are zero-extended 32-bit values.
        return k.shift_right(k.shift_left(value, bits), bits)

    def high_halves(first: Expr, second: Expr) -> Expr:
        return k.shuffle([k.bitcast(v, "uint32", LANES) for v in (first, second)], (1, 3, 5, 7))

    acc = k.alloc(LANES, "uint32")
    k.store(acc, 0, k.bitcast(sums, "uint32", LANES), LANES)
    with k.when(k.shuffle([field(0)], [1]) < k.i32(0)):
        words = k.call("int16x8", "llvm.x86.sse2.packssdw.128", sums, sums)
        # Two products per lane, of which the second is with the upper half of the factor: zero.
        pairs = k.shuffle([words], [i // 2 for i in range(8)])
        scaled = k.call("int32x4", "llvm.x86.sse2.pmadd.wd", pairs, narrow(1, "int16", 8))
        direct = k.bitwise_and(k.load(acc, 0, LANES), narrow(0))
        k.store(acc, 0, k.bitwise_or(direct, k.bitcast(scaled, "uint32", LANES)), LANES)
    unsigned = k.bitcast(k.wrapping_add(k.load(acc, 0, LANES), k.const(1 << 31, "uint32", LANES), LANES), "uint64", 2)
    even = low(unsigned) * low(wide(0)) + wide(1)
    odd = k.shift_right(unsigned, bits) * low(wide(2)) + wide(3)
    # Channels 0, 2, 1, 3; as 64-bit lanes, 0 and 1 are the low halves.
    high = k.bitcast(high_halves(even, odd), "uint64", 2)
    quotients = high_halves(low(high) * low(wide(4)), k.shift_right(high, bits) * low(wide(5)))
    return k.bitcast(k.wrapping_add(quotients, narrow(2), LANES), "int32", LANES)


def saturate(k: Builder, values: Sequence[Expr], limits: Sequence[Expr]) -> Expr:
    """Up to four int32 vectors of 4 as 16 uint8 codes (packssdw, packuswb), clamped to `limits`; missing vectors repeat."""
    full = [values[min(i, len(values) - 1)] for i in range(4)]
    words = [k.call("int16x8", "llvm.x86.sse2.packssdw.128", full[i], full[i + 1]) for i in (0, 2)]
    codes = k.bitcast(k.call("int8x16", "llvm.x86.sse2.packuswb.128", *words), "uint8", 16)
    return clamp_codes(k, codes, 16, limits)


def store(k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, limits: Sequence[Expr]) -> None:
    """Saturate vectors of 4 int32 to uint8, clamp to `limits`, and store `valid` codes."""
    for j in range(0, len(values), 4):
        some = values[j : j + 4]
        store_valid(k, y, offset + j * 4, saturate(k, some, limits), 16, min(4 * len(some), valid - j * 4))
