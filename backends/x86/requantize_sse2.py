"""Exact dyadic requantization of int32 sums with SSE2 alone: zp + ((acc * m + 2^(n-1)) >> n) for every n in 1..62, one rounding.

In: vectors of 4 int32 sums and per-channel parameters packed here. Out: int32 codes before saturation, or stored uint8 codes.

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

import numpy as np

from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.kernels.tiling import store_valid
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86.requantize import clamp_codes
from bevel.errors import CheckFailed

LANES = 4
# The first shift that needs no scaled sum, and the least that is told apart.
_LONG, _SHORTEST = 33, 21
# Makes products non-negative; a multiple of every 2^n.
_LIFT = 62


def pack(constants: ConvConstants) -> Array:
    """Parameters as int64, one record of 18 elements per vector of 4 channels.

    A record is six pairs of 64 bits (multiplier and addend of channels 0 and 2, then of 1 and 3; factor 2^(64-n) of channels 0
    and 1, then 2 and 3), then three quads of 32 bits (a mask of sums used as they are, the scale of the others, zero point).
    The first multiplier is made negative where any sum is scaled.
    """
    if constants.multiplier is None or constants.shift is None:
        raise CheckFailed("a requantized convolution was packed without multiplier and shift")

    def padded(values: Array, fill: int) -> Array:
        full = np.full(-(-len(values) // LANES) * LANES, fill, np.int64)
        full[: len(values)] = values
        return full.reshape(-1, LANES)

    m, n = padded(constants.multiplier, 0), padded(constants.shift, _LONG)
    direct = n >= _LONG
    scale = np.where(direct, 0, np.left_shift(1, _LONG - np.clip(n, _SHORTEST, _LONG)))
    n = np.maximum(n, _LONG)
    # At most 2^62 + 2^61.
    addend = (1 << _LIFT) - np.left_shift(m, 31) + np.left_shift(1, n - 1)
    factor = np.left_shift(1, 64 - n)
    zero = constants.y_zero_point - np.left_shift(1, _LIFT - n)
    m[:, 0] |= np.where(direct.all(axis=1), 0, np.iinfo(np.int64).min)
    wide = [m[:, 0::2], addend[:, 0::2], m[:, 1::2], addend[:, 1::2], factor[:, :2], factor[:, 2:]]
    narrow = np.concatenate([np.where(direct, -1, 0), scale, zero], axis=1).astype(np.int32).view(np.int64)
    return np.concatenate([*wide, narrow], axis=1).ravel()


def requantize(k: Builder, sums: Expr, params: Buffer, channel: Expr) -> Expr:
    """Int32 codes of channels [channel, channel + 4), zero point added, not yet saturated.

    Args:
        k: builder.
        sums: int32 vector of 4.
        params: from `pack`.
        channel: first channel, a multiple of 4.
    """
    base = channel * 9 // 2
    bits = k.const(32, "uint64", 2)

    def wide(index: int) -> Expr:
        return k.bitcast(k.load(params, base + index * 2, 2), "uint64", 2)

    def narrow(index: int, dtype: str = "uint32", lanes: int = LANES) -> Expr:
        return k.bitcast(k.load(params, base + 12 + index * 2, 2), dtype, lanes)

    def low(value: Expr) -> Expr:
        # LLVM selects pmuludq, and drops these shifts, when both factors visibly are zero-extended 32-bit values.
        return k.shift_right(k.shift_left(value, bits), bits)

    def high_halves(first: Expr, second: Expr) -> Expr:
        return k.shuffle([k.bitcast(v, "uint32", LANES) for v in (first, second)], (1, 3, 5, 7))

    acc = k.alloc(LANES, "uint32")
    k.store(acc, 0, k.bitcast(sums, "uint32", LANES), LANES)
    with k.when(k.load(params, base) < k.const(0, "int64")):
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
