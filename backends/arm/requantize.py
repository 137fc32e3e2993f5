"""Exact dyadic requantization on NEON: int32 accumulators in, int8 codes out.

    out = clamp(zp + ((acc * m + 2^(n - 1)) >> n), lo, hi)      m in [2^30, 2^31) or 0, n in 1..62, any int32 acc

with a 64-bit product and one half-up rounding, in four instructions per four lanes and no 64-bit vector arithmetic:

* `sqdmulh(acc, m)` is floor(acc * m / 2^31): exact, and it cannot saturate because m is never -2^31. For n >= 32
  the rest of the formula is (floor(acc * m / 2^31) + 2^(n - 32)) >> (n - 31), because 2^(n - 1) is a multiple of
  2^31 and nested floors compose: `srshl` by 31 - n, which rounds half up with unlimited intermediate precision.
* n < 32 (a ratio of 0.5 or more) becomes n = 32 by `sqshl(acc, 32 - n)`. Where that saturates, |acc| >= 2^(n - 1),
  so the true result and the one computed are both beyond +-2^28, and of one sign.
* `sqxtn` to int16, saturating `sqadd` of the zero point and `sqxtn` to int8 keep what is beyond the clamp beyond it.

The numbers are run-time data, so layers of equal shape share a kernel. Packed layout, int32: a header
[zp, lo, hi, 0], then for every four channels [4 pre-shifts][4 multipliers][4 post-shifts].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bevel.backends.kernel import Array, ConvConstants
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.errors import UsageError

HEADER = 4
PER_QUAD = 12


def packed_size(channels: int) -> int:
    """Number of int32 in the packed parameters of `channels` channels."""
    return HEADER + -(-channels // 4) * PER_QUAD


def pack_requantize(constants: ConvConstants, channels: int) -> Array:
    """The parameters of `constants` as the kernels read them.

    Args:
        constants: with `multiplier`, `shift`, `y_zero_point`, `lo` and `hi`.
        channels: at least the number of output channels; those beyond it get a multiplier of 0.

    Returns:
        int32 [packed_size(channels)].

    Raises:
        UsageError: a multiplier or shift is missing or outside the integer contract.
    """
    if constants.multiplier is None or constants.shift is None:
        raise UsageError("requantization needs ConvConstants.multiplier and .shift; got None: set both")
    multiplier = np.asarray(constants.multiplier, np.int64)
    shift = np.asarray(constants.shift, np.int64)
    outside = (shift < 1) | (shift > 62) | ((multiplier != 0) & ((multiplier < 1 << 30) | (multiplier >= 1 << 31)))
    if outside.any():
        at = int(np.argmax(outside))
        raise UsageError(
            f"requantization of channel {at}: multiplier {multiplier[at]}, shift {shift[at]}; expected 0 or "
            "[2^30, 2^31) and 1..62: derive them with the dyadic rule of the integer contract"
        )
    quads = -(-channels // 4)
    table = np.zeros((3, quads * 4), np.int64)
    table[:, : len(shift)] = np.maximum(32 - shift, 0), multiplier, 31 - np.maximum(shift, 32)
    header = np.zeros(HEADER, np.int32)
    header[:3] = constants.y_zero_point, max(constants.lo, -128), min(constants.hi, 127)
    body = table.reshape(3, quads, 4).transpose(1, 0, 2).astype(np.int32)
    return np.concatenate([header, body.reshape(-1)])


def requantize(k: Builder, params: Buffer, channel: Expr, quads: Sequence[Expr]) -> Expr:
    """Requantize adjacent channels.

    Args:
        k: the kernel being written.
        params: int32 buffer in the packed layout.
        channel: first channel, a multiple of 4.
        quads: two or four int32x4 accumulators, of channels [channel, channel + 4 * len(quads)).

    Returns:
        int8x8 or int8x16, clamped.
    """
    narrow = []
    for q, acc in enumerate(quads):
        base = channel * (PER_QUAD // 4) + (HEADER + q * PER_QUAD)
        pre, multiplier, post = (k.load(params, base + i * 4, 4) for i in range(3))
        value = k.call("int32x4", "llvm.aarch64.neon.sqshl", acc, pre)
        value = k.call("int32x4", "llvm.aarch64.neon.sqdmulh", value, multiplier)
        value = k.call("int32x4", "llvm.aarch64.neon.srshl", value, post)
        narrow.append(k.call("int16x4", "llvm.aarch64.neon.sqxtn", value))
    zero_point = k.splat(k.cast(k.load(params, 0), "int16"), 8)
    octets = []
    for a, b in zip(narrow[::2], narrow[1::2], strict=True):
        value = k.call("int16x8", "llvm.aarch64.neon.sqadd", k.shuffle([a, b], range(8)), zero_point)
        octets.append(k.call("int8x8", "llvm.aarch64.neon.sqxtn", value))
    lanes = 8 * len(octets)
    codes = octets[0] if len(octets) == 1 else k.shuffle(octets, range(lanes))
    lo, hi = (k.splat(k.cast(k.load(params, i), "int8"), lanes) for i in (1, 2))
    return k.min(k.max(codes, lo), hi)
