"""int8 dense convolution and GEMM with AVX-512 VNNI: vpdpbusd multiplies four uint8 codes by four int8 weights into int32.

Products and sums are exact modulo 2^32 (vpdpbusd does not saturate), so every result that fits int32 is exact. Weights keep all
eight bits. Inputs are biased codes in [0, 255]; their zero point is in the packed bias.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernel import Array
from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.kernels.parameters import Fields
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86 import requantize


class VnniKernel(MicroKernel):
    """Broadcast four input codes, multiply by four codes of 16 channels."""

    lanes = 16
    kgroup = 4
    fields = requantize.FIELDS
    acc_dtype = "int32"
    x_dtype = "uint8"
    weight_dtype = "int8"
    copy_lanes = 64
    fetches_ahead = True
    short_requantize = True

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts of four consecutive codes."""
        quads = [k.bitcast(k.load(x, offset + u * 4, 4), "int32") for u in range(groups)]
        return [k.bitcast(k.splat(quad, 16), "uint8", 64) for quad in quads]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Four products per lane."""
        return k.call("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, x, w)

    def expand(self, k: Builder, multiplier: Expr, shift: Expr, zero_point: Expr) -> list[Expr]:
        """See `bevel.backends.x86.requantize`."""
        return requantize.expand(k, multiplier, shift, zero_point, 16, lifted=False)

    def requantize(self, k: Builder, sums: Expr, field: Fields) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize(k, sums, field, 16, lifted=False)

    def pack_short(self, factors: Array) -> Array:
        """See `bevel.backends.x86.requantize`."""
        return requantize.pack_short(factors)

    def requantize_short(self, k: Builder, sums: Expr, params: Buffer, channel: Expr, bias: Buffer) -> Expr:
        """See `bevel.backends.x86.requantize`."""
        return requantize.requantize_short(k, sums, params, channel, bias, 16)

    def store_codes(
        self, k: Builder, y: Buffer, offset: Expr, values: Sequence[Expr], valid: int, limits: Sequence[Expr]
    ) -> None:
        """See `bevel.backends.x86.requantize`."""
        requantize.store_avx512(k, y, offset, values, valid, limits)


# Two vpdpbusd per cycle with a latency of five.
CONV_INT8_VNNI = ConvGenerator(
    name="x86_conv_int8_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=VnniKernel(),
    shapes=((14, 2), (26, 1), (6, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10),
)
