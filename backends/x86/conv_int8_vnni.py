"""int8 dense convolution and GEMM with vpdpbusd, which multiplies four uint8 codes by four int8 weights into int32.

AVX-512 VNNI has it on vectors of 16 channels, AVX-VNNI (client cores since Alder Lake, and the small ones of an N100) on 8.

Products and sums are exact modulo 2^32 (vpdpbusd does not saturate), so every result that fits int32 is exact. Weights keep all
eight bits. Inputs are biased codes in [0, 255]; their zero point is in the packed bias.
"""

from __future__ import annotations

from collections.abc import Sequence

from bevel.backends.kernel import Array, Problem
from bevel.backends.kernels.conv import Geometry
from bevel.backends.kernels.generator import ConvGenerator, Pipeline, fetched_inputs, kept_bytes
from bevel.backends.kernels.micro import MicroKernel
from bevel.backends.kernels.parameters import Fields
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.backends.x86 import requantize
from bevel.backends.x86.conv_int8_madd import Avx2Kernel
from bevel.ir.protocols import Target


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


class AvxVnniKernel(Avx2Kernel):
    """The same with 8 channels, and the epilogue of AVX2."""

    kgroup = 4
    acc_dtype = "int32"
    x_dtype = "uint8"
    weight_dtype = "int8"
    copy_lanes = 32

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts of four consecutive codes."""
        quads = [k.bitcast(k.load(x, offset + u * 4, 4), "int32") for u in range(groups)]
        return [k.bitcast(k.splat(quad, 8), "uint8", 32) for quad in quads]

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Four products per lane."""
        return k.call("int32x8", "llvm.x86.avx512.vpdpbusd.256", acc, x, w)


class AvxVnniConv(ConvGenerator):
    """Convolutions on cores with AVX-VNNI."""

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: AVX-512 does twice as much in an instruction."""
        if target.has("avx512_vnni"):
            return f"vectors of 8 channels, {target.name} has 16"
        return super().legal(problem, target)


class WideVnniConv(ConvGenerator):
    """Convolutions by vpdpbusd on AVX-512: weights stream from the second cache about as fast as they are used."""

    def waiting(self, g: Geometry, target: Target) -> float:
        """Every block of channels passes over the input; weights come from the second cache, or from beyond it."""
        p = g.problem
        kept = kept_bytes(target)
        second = target.caches[1].bytes if len(target.caches) > 1 else SECOND_CACHE_BYTES
        waits = INPUT_FETCH * fetched_inputs(g, kept)
        block = g.weight_bytes // (p.groups * g.vectors)
        visits = sum(count for count, _, _ in g.bodies)
        again = sum(run.count * run.size for run in g.columns if run.size * block > kept)
        waits += WEIGHT_FETCH * p.groups * again * block * (visits - 1)
        if g.weight_bytes > second / 2:
            waits += (FAR_FETCHED if g.fetches_ahead else FAR_FETCH) * g.weight_bytes
        return waits


# Cycles per byte of input that is read again from the second cache, of weights likewise, and of weights from beyond it, fetched
# ahead or not; they and the cycles of results are fitted to 84 kernels, four of each of 21 layers and products.
INPUT_FETCH, WEIGHT_FETCH, FAR_FETCHED, FAR_FETCH = 0.009, 0.0008, 0.13, 0.19
# Where it is not known.
SECOND_CACHE_BYTES = 1024 * 1024
# Two vpdpbusd per cycle with a latency of five.
CONV_INT8_VNNI = WideVnniConv(
    name="x86_conv_int8_vnni",
    arch="x86_64",
    features=("avx512", "avx512_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=VnniKernel(),
    shapes=((14, 2), (26, 1), (6, 4)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, result=3.2),
    spare_shapes=((5, 5),),
    spare_unrolls=(2,),
)
CONV_INT8_AVX_VNNI = AvxVnniConv(
    name="x86_conv_int8_avxvnni",
    arch="x86_64",
    features=("avx2", "avx_vnni"),
    dtype="uint8",
    out_dtypes=("uint8", "int32"),
    micro=AvxVnniKernel(),
    shapes=((6, 2), (4, 3)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=10, unroll=2),
)
