"""Exact dyadic requantization on NEON: int32 accumulators in, int8 codes out.

    out = clamp(zp + ((acc * m + 2^(n - 1)) >> n), lo, hi)      m in [2^30, 2^31) or 0, n in 1..62, any int32 acc

with a 64-bit product and one half-up rounding, in three instructions per four lanes and no 64-bit vector arithmetic:

* `sqdmulh(acc, m)` is floor(acc * m / 2^31): exact, and it cannot saturate because m is never -2^31. For n >= 32
  the rest of the formula is (floor(acc * m / 2^31) + 2^(n - 32)) >> (n - 31), because 2^(n - 1) is a multiple of
  2^31 and nested floors compose: `srshl` by 31 - n, which rounds half up with unlimited intermediate precision.
* n < 32 (a ratio of 0.5 or more) becomes n = 32 by `sqshl(acc, 32 - n)`. Where that saturates, |acc| >= 2^(n - 1),
  so the true result and the one computed are both beyond +-2^28, and of one sign.
* Saturating `sqadd` of the zero point and `sqxtn` to int16 and int8 keep what is beyond the clamp beyond it.

Short factors (`ConvConstants.short_factors`: m * 2^-n = f * 2^-31) need one instruction: `sqrdmulh(acc, f)` is
(acc * f + 2^30) >> 31, which cannot saturate because f < 2^30. Packed, they are the factors alone.

The numbers are run-time data, so layers of equal shape share a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevel.backends.arm.neon import A64, Neon
from bevel.backends.kernel import Array
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.kernels.parameters import Fields
from bevel.backends.kernels.tiling import store_valid
from bevel.backends.tvm import Buffer, Builder, Expr

# Pre-shifts, multipliers, post-shifts, zero points.
FIELDS = 4


def expand(k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr, lanes: int = 4) -> list[Expr]:
    """The record of `lanes` channels: their pre-shifts, multipliers, post-shifts and zero points.

    Args:
        k: the kernel being written.
        multiplier: int32 vector.
        shift: int32 vector.
        zero_point: int32 scalar.
        lanes: of the vectors.
    """
    limit = k.const(32, "int32", lanes)
    pre = k.max(limit - shift, k.const(0, "int32", lanes))
    return [pre, multiplier, k.const(31, "int32", lanes) - k.max(shift, limit), k.splat(zero_point, lanes)]


def requantize(k: Builder, neon: Neon, acc: Expr, field: Fields) -> Expr:
    """Requantize four adjacent channels.

    Args:
        k: the kernel being written.
        neon: instructions of the target.
        acc: int32x4 accumulators.
        field: what `expand` made.

    Returns:
        int32x4, zero point added with saturation, not yet clamped.
    """
    value = k.call("int32x4", neon.saturating_shift, acc, field(0))
    value = k.call("int32x4", neon.doubling_high_multiply, value, field(1))
    value = k.call("int32x4", neon.rounding_shift, value, field(2))
    return k.call("int32x4", neon.saturating_add, value, field(3))


def pack_short(factors: Array) -> Array:
    """Short factors of channels as int32, padded to quads."""
    return np.concatenate([factors, np.zeros(-len(factors) % 4, np.int64)]).astype(np.int32)


def requantize_short(k: Builder, neon: Neon, acc: Expr, params: Buffer, channel: Expr, bias: Buffer) -> Expr:
    """As `requantize`, from `pack_short`; the header of `bias` holds the zero point."""
    value = k.call("int32x4", neon.rounding_doubling_high_multiply, acc, k.load(params, channel, 4))
    return k.call("int32x4", neon.saturating_add, value, k.splat(k.load(bias, k.i32(3)), 4))


def narrow_codes(k: Builder, neon: Neon, values: Sequence[Expr], limits: Sequence[Expr]) -> Expr:
    """Saturate two int32x4 to int8x8, then clamp to `limits` (int32 scalars lo, hi; empty for none)."""
    halves = [k.call("int16x4", neon.saturating_narrow, value) for value in values]
    codes = k.call("int8x8", neon.saturating_narrow, k.shuffle(halves, range(8)))
    if limits:
        lo, hi = (k.splat(k.cast(limit, "int8"), 8) for limit in limits)
        codes = k.min(k.max(codes, lo), hi)
    return codes


@dataclass(frozen=True)
class NeonInteger(MicroKernel):
    """What the int8 micro-kernels share: four int32 sums per vector, and this requantization.

    Attributes:
        neon: instructions of the target.
    """

    neon: Neon = A64

    lanes = 4
    acc_dtype = "int32"
    x_dtype = "int8"
    weight_dtype = "int8"
    fields = FIELDS
    short_requantize = True

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr) -> list[Expr]:
        """See `MicroKernel.expand`."""
        return expand(k, multiplier, shift, zero_point)

    def requantize(self, k: Builder, sums: Expr, field: Fields) -> Expr:
        """See `MicroKernel.requantize`."""
        return requantize(k, self.neon, sums, field)

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer) -> Expr:
        """See `MicroKernel.requantize_short`."""
        return requantize_short(k, self.neon, sums, params, channel, bias)

    def pack_short(self, factors: Array) -> Array:
        """See `MicroKernel.pack_short`."""
        return pack_short(factors)

    def store_codes(
        self, k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, limits: Sequence[Expr]
    ) -> None:
        """See `MicroKernel.store_codes`; an odd last vector is narrowed with a copy of itself."""
        for j in range(0, len(values), 2):
            pair = values[j : j + 2] if j + 1 < len(values) else [values[j]] * 2
            lanes = min(4 * (len(values) - j), 8)
            codes = narrow_codes(k, self.neon, pair, limits)
            if lanes < 8:
                codes = k.shuffle([codes], range(lanes))
            store_valid(k, y, offset + j * 4, codes, lanes, min(lanes, valid - j * 4))
